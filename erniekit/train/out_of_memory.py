"""Explains an out-of-memory error: the sequence that was computed, the memory plan, and settings that need less."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from erniekit.checkpoint.resize import ModelChanges
from erniekit.checkpoint.state import newest_checkpoint
from erniekit.config import Config
from erniekit.data.encode.limits import enlarged_limits
from erniekit.data.load.batch import PackedBatch
from erniekit.display.text import counted, listed
from erniekit.errors import ErnieKitError
from erniekit.models.config import ErnieConfig
from erniekit.runtime import compute_dtype
from erniekit.train.describe import describe_model
from erniekit.train.device_memory import device_gpu, device_memory
from erniekit.train.memory import USABLE
from erniekit.train.planner.job import Job
from erniekit.train.planner.remedies import find_remedies

# Paddle raises MemoryError if an allocation fails, and OSError with its text where that was in a backward pass.
_TEXT = re.compile(r"ResourceExhausted|\bMemoryError\b|[Oo]ut of memory")
_SAYS_WHAT = re.compile(r"[Oo]ut of memory|(Cannot|Unable to|Fail to) alloc")
_NAMED_SAMPLES = 5
# Remedies must need at most this share of the memory that was not enough.
_LESS = 0.9


class StepOutOfMemory(MemoryError):
    """Out of memory while the rows of a step are computed. The message says which."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation on the device or in the host's memory has failed."""
    is_text = isinstance(error, OSError | RuntimeError) and _TEXT.search(str(error)) is not None
    return isinstance(error, MemoryError) or is_text


@contextmanager
def naming_rows(step: int, batches: Sequence[PackedBatch]) -> Iterator[None]:
    """Inside, the rows of a step are computed. Raises StepOutOfMemory instead of Paddle's error."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise StepOutOfMemory(f"{_describe_largest(step, batches)} Reported: {_first_line(error)}") from error


def explain_out_of_memory(error: BaseException, config: Config, device: str, processes: int) -> ErnieKitError:
    """An error with the sequence, the memory plan, settings that need less, and the newest checkpoint.

    device: "cpu" or "gpu"; processes: of the run.
    """
    what = str(error) if isinstance(error, StepOutOfMemory) else f"Reported: {_first_line(error)}"
    where = "GPU" if device == "gpu" else "machine"
    job = Job(
        config,
        ErnieConfig.from_dir(config.model.directory),
        processes,
        device_memory(),
        compute_dtype(config.model.dtype, device),
        ModelChanges(*enlarged_limits(config.model)),
    )
    lines = [f"the {where} is out of memory. {what}", *describe_model(job.plan.memory, processes)[1:]]
    limit = _LESS * min(job.plan.memory.total_bytes, USABLE * job.device_bytes)
    remedies = find_remedies(job, int(limit), device_gpu())
    if remedies:
        lines.append("settings that need less, cheapest first:")
        lines += [
            f"  {' '.join(remedy.overrides)}" + (f" ({remedy.cost})" if remedy.cost else "")
            for remedy in remedies
        ]
    else:
        lines.append("by the memory plan, no setting needs less: use more or larger devices")
    newest = newest_checkpoint(Path(config.train.output_dir))
    if newest is None:
        lines.append("nothing was saved yet")
    else:
        lines += [
            f"the newest complete checkpoint is {newest}",
            "--resume continues from it, unless what is trained or data.max_length changes",
        ]
    return ErnieKitError("\n  ".join(lines))


def _describe_largest(step: int, batches: Sequence[PackedBatch]) -> str:
    """The row with the most tokens and patches, and its samples."""
    largest = max(batches, key=lambda batch: len(batch.input_ids) + len(batch.patches))
    tokens = counted(len(largest.input_ids), "token")
    patches = f" and {len(largest.patches):,} patches of images" if len(largest.patches) else ""
    names = listed(largest.sample_ids, _NAMED_SAMPLES)
    samples = f", of the samples {names}" if names else ""
    return f"Step {step}: the largest sequence of this process has {tokens}{patches}{samples}."


def _first_line(error: BaseException) -> str:
    """The line of Paddle's text with the error, which follows a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = next(
        (line for line in lines if _SAYS_WHAT.search(line)), lines[0] if lines else type(error).__name__
    )
    return found[:300]
