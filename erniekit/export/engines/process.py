"""Programs that live in an environment of their own: a script runs there, gets a request and writes a response.

Both are JSON files. `llmcompressor_runner.py` describes those of llm-compressor; those of an engine are:
REQUEST.json: {"model": path, "family": "dense" | "moe" | "vl", "max_new_tokens": n, "dtype": of the computation,
"trust_remote_code": bool, "workarounds": bool, "prompts": [{"name", "input_ids": [T], "short_ids": the same with one
placeholder for each image or video, "images": [PNG files], "videos": [[PNG files]]}]}.
RESPONSE.json: {"engine": name and version, "faults": [names of known faults], "answers": {name: fields of `Answer`}}.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erniekit.data.encode.tokenizer import load_tokenizer
from erniekit.errors import EngineError, VerifyError
from erniekit.export.engines.answers import Answer
from erniekit.export.engines.prompts import Prompt

_SCRIPTS = Path(__file__).parent
_CHECKOUT = _SCRIPTS.parents[2]
# Engines must not reach for the network, report usage, or take more threads than they are given.
_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TOKENIZERS_PARALLELISM": "false",
}
_PLACEHOLDERS = {False: "<|image@placeholder|>", True: "<|video@placeholder|>"}
_SHOWN = 1500


@dataclass(frozen=True)
class Environment:
    """A program's environment: `make engines` makes `folder`, `script` runs there, `option` names another Python."""

    name: str
    folder: str
    script: str
    option: str = "--engine-python"


VLLM = Environment("vLLM", ".venv-vllm", "vllm_runner.py")
LLAMA = Environment("llama.cpp", ".venv-llama", "llama_runner.py")
LLM_COMPRESSOR = Environment(
    "llm-compressor", ".venv-llmcompressor", "llmcompressor_runner.py", "--quantize-python"
)


@dataclass(frozen=True)
class Response:
    """What the script answers: see the top of this file."""

    engine: str
    faults: tuple[str, ...]
    answers: dict[str, Answer]


def find_python(environment: Environment, given: Path | None) -> Path:
    """The environment's Python: `given`, or that of `make engines`. Raises EngineError if there is none."""
    if given is not None:
        if not given.is_file():
            raise EngineError(f"{environment.option} {given}: no such file")
        return given
    for parent in (Path.cwd(), _CHECKOUT):
        python = parent / environment.folder / "bin" / "python"
        if python.is_file():
            return python
    raise EngineError(
        f"{environment.name} is not installed: no {environment.folder} here or in erniekit's checkout. `make engines "
        f"ENGINES={environment.folder.removeprefix('.venv-')}` makes it there; {environment.option} names the Python "
        "of another environment"
    )


def ask(
    environment: Environment,
    python: Path,
    model: Path,
    prompts: Sequence[Prompt],
    *,
    tokenizer: Path,
    family: str,
    max_new_tokens: int,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    workarounds: bool = True,
) -> Response:
    """Answer the prompts in an engine. `tokenizer`: the model directory. Raises EngineError if it fails."""
    with tempfile.TemporaryDirectory(prefix="erniekit-engine-") as folder:
        request: dict[str, Any] = {
            "model": str(model.resolve()),
            "family": family,
            "max_new_tokens": max_new_tokens,
            "dtype": dtype,
            "trust_remote_code": trust_remote_code,
            "workarounds": workarounds,
            "prompts": [_written(prompt, Path(folder), tokenizer) for prompt in prompts],
        }
        content = run_script(environment, python, request, Path(folder))
    answers = {name: Answer(**fields) for name, fields in content["answers"].items()}
    return Response(content["engine"], tuple(content["faults"]), answers)


def run_script(
    environment: Environment, python: Path, request: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """The response of an environment's script. Both files are written to `folder`. Raises EngineError if it fails."""
    files = [folder / "request.json", folder / "response.json"]
    files[0].write_text(json.dumps(request), encoding="utf-8")
    ended = subprocess.run(
        [str(python), str(_SCRIPTS / environment.script), *map(str, files)],
        env=_without_own_paths(os.environ) | _SETTINGS,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if ended.returncode != 0 or not files[1].is_file():
        raise EngineError(
            f"{environment.name} ({python}) failed: exit status {ended.returncode}; the end of its output:\n"
            f"{ended.stdout[-_SHOWN:].strip()}"
        )
    response: dict[str, Any] = json.loads(files[1].read_text(encoding="utf-8"))
    return response


def _without_own_paths(environment: Any) -> dict[str, str]:
    """Environment variables without those that lead Python to this environment's packages."""
    return {name: value for name, value in environment.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def _written(prompt: Prompt, folder: Path, tokenizer: Path) -> dict[str, Any]:
    """A prompt as JSON, with its media in files."""

    def write(data: bytes, *place: int) -> str:
        file = folder / f"{prompt.name}-{'-'.join(map(str, place))}.png"
        file.write_bytes(data)
        return str(file)

    return {
        "name": prompt.name,
        "input_ids": prompt.document.input_ids.tolist(),
        "short_ids": _short_ids(prompt, tokenizer),
        "images": [write(image, i) for i, image in enumerate(prompt.images)],
        "videos": [[write(frame, i, j) for j, frame in enumerate(v)] for i, v in enumerate(prompt.videos)],
    }


def _short_ids(prompt: Prompt, tokenizer: Path) -> list[int]:
    """The tokens with the placeholder that the engine's processor expands, for each image and video."""
    ids = prompt.document.input_ids.tolist()
    if not prompt.document.media:
        return ids
    backend = load_tokenizer(tokenizer).backend_tokenizer
    short, end = [], 0
    for item in prompt.document.media:
        placeholder = backend.token_to_id(_PLACEHOLDERS[item.is_video])
        if placeholder is None:
            raise VerifyError(f"{tokenizer}: its tokenizer has no {_PLACEHOLDERS[item.is_video]}")
        short += [*ids[end : item.start], placeholder]
        end = item.start + item.tokens
    return short + ids[end:]
