"""Time images from file to patches, in erniekit and in transformers' processor, and videos, on one core each.

    python tools/bench/media.py [--seconds 0.5] [--rounds 3] [--video-seconds 30] [--photographs DIRECTORY]

Each side runs in a separate process with one thread, in turns. The median of the rounds is printed in images per
second for each kind of image. erniekit's side is open_image and patchify, which return uint8 patches for
normalization on the device. transformers' side is load_image and Ernie4_5_VLMoeImageProcessorPil, which return
float32. Videos are only timed in erniekit, because transformers decodes them only with torchvision.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from erniekit.data.media.images import open_image
from erniekit.data.media.patches import ImageSpec, patchify
from erniekit.data.media.video import VideoSpec, patchify_video, sample_frames, video_grid, video_info

ROOT = Path(__file__).resolve().parents[2]
PIXELS = (56 * 56, 28 * 28 * 6177)
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
Once = Callable[[str], Any]


def main() -> None:
    """Run every comparison and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="seconds per side and round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each comparison")
    parser.add_argument("--video-seconds", type=int, default=30, help="length of the videos")
    parser.add_argument("--photographs", type=Path, help="a directory of photographs (JPEG) to time as well")
    arguments = parser.parse_args()
    os.environ.update(dict.fromkeys(THREADS, "1"))
    with tempfile.TemporaryDirectory() as directory:
        kinds = images(Path(directory), arguments.photographs)
        sides = [start(side) for side in (serve_ours, serve_theirs)]
        print(f"{'images per second':28}{'erniekit':>10}{'transformers':>14}{'ratio':>8}")
        for name, paths in kinds.items():
            rates: tuple[list[float], list[float]] = ([], [])
            for _ in range(arguments.rounds):
                for side, found in zip(sides, rates, strict=True):
                    side.send((paths, arguments.seconds))
                    found.append(side.recv())
            ours, theirs = statistics.median(rates[0]), statistics.median(rates[1])
            print(f"{name:28}{ours:10.0f}{theirs:14.0f}{ours / theirs:8.2f}")
        for side in sides:
            side.send(None)
    time_videos(arguments.video_seconds)


def images(directory: Path, photographs: Path | None) -> dict[str, list[str]]:
    """Paths of the images of each kind; those that are made here are written into directory."""
    samples = sorted((ROOT / "data" / "samples" / "images").glob("*.png"))
    kinds = {"drawn shapes, PNG": [str(path) for path in samples]}
    small = Image.open(samples[0]).convert("L").resize((8, 8))
    small.save(directory / "small.png")
    kinds["8x8, grey PNG"] = [str(directory / "small.png")]
    for width, height in ((640, 480), (1920, 1080)):
        kinds[f"{width}x{height}, JPEG"] = [
            str(write_photograph(directory / f"{width}_{seed}.jpg", height, width, seed)) for seed in range(3)
        ]
    if photographs is not None:
        kinds[f"{photographs.name}/*.jpg"] = [str(path) for path in sorted(photographs.glob("*.jpg"))]
    return {name: paths for name, paths in kinds.items() if paths}


def write_photograph(path: Path, height: int, width: int, seed: int) -> Path:
    """Noise at several scales, as detailed as a photograph: half a byte a pixel in JPEG."""
    generator = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for scale, strength in ((64, 100), (16, 30), (4, 12), (1, 4)):
        coarse = generator.integers(0, 256, (height // scale + 1, width // scale + 1, 3), dtype=np.uint8)
        layer = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        total += (np.asarray(layer) / 127.5 - 1) * strength
    Image.fromarray(np.clip(total + 128, 0, 255).astype(np.uint8)).save(path, quality=90)
    return path


def start(serve: Callable[[Connection], None]) -> Connection:
    """A process of its own that times what it is sent: (paths, seconds) in, images per second out."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=serve, args=(there,), daemon=True).start()
    return here


def serve_ours(connection: Connection) -> None:
    """erniekit's side."""
    spec = ImageSpec(*PIXELS)
    serve(connection, lambda path: patchify(open_image(path, path), spec))


def serve_theirs(connection: Connection) -> None:
    """transformers' side."""
    from transformers.image_utils import load_image
    from transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe import (
        Ernie4_5_VLMoeImageProcessorPil,
    )

    processor = Ernie4_5_VLMoeImageProcessorPil(size={"shortest_edge": PIXELS[0], "longest_edge": PIXELS[1]})
    serve(connection, lambda path: processor([load_image(path)], return_tensors="np"))


def serve(connection: Connection, once: Once) -> None:
    """Answers until it is sent None."""
    while (work := connection.recv()) is not None:
        connection.send(rate(once, *work))


def rate(once: Once, paths: list[str], seconds: float) -> float:
    """Images per second over at least that many seconds, after one unmeasured round."""
    for path in paths:
        once(path)
    done, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for path in paths:
            once(path)
        done += len(paths)
    return done / (time.perf_counter() - begin)


def time_videos(length: int) -> None:
    """Prints how fast a video of `length` seconds is read, 2 of 30 frames a second, with a keyframe every 2 s and every
    10 s."""
    spec = VideoSpec(2.0, 16, 180, "leading", True, 299 * 28 * 28, 1196 * 28 * 28, 14, 2, 0)
    for seconds in (2, 10):
        video = encode_video(length, seconds)
        begin = time.perf_counter()
        info = video_info(video, "bench")
        headed = time.perf_counter()
        frames = sample_frames(info, spec, "bench")
        patchify_video(video, frames, video_grid(info, frames, spec), spec, "bench")
        took = time.perf_counter() - headed
        print(
            f"video 640x360, keyframe every {seconds:2} s: header {1000 * (headed - begin):.0f} ms, "
            f"{len(frames)} of {info.frames} frames in {took:.2f} s = {len(frames) / took:.0f} frames per second"
        )


def encode_video(length: int, keyframe_seconds: int) -> bytes:
    """`length` seconds of 30 frames a second: a photograph that the camera pans over, H.264 in MP4."""
    import av

    with tempfile.TemporaryDirectory() as directory:
        wide = Image.open(write_photograph(Path(directory) / "wide.jpg", 360, 640 + 30 * length, 0))
        wide.load()
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        options = {"preset": "veryfast", "threads": "1", "g": str(30 * keyframe_seconds)}
        stream = output.add_stream("libx264", rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for number in range(30 * length):
            frame = av.VideoFrame.from_image(wide.crop((number, 0, number + 640, 360)))
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


if __name__ == "__main__":
    main()
