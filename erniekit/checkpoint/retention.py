"""Which checkpoints of a run are kept, and removing the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from erniekit.checkpoint.state import CHECKPOINT_NAME, SET_ASIDE, find_checkpoints, remove_checkpoint


def outdated_checkpoints(
    run: Path, keep: int, spare: Collection[int] = (), keep_every: int | None = None
) -> list[Path]:
    """All but the `keep` newest complete checkpoints, and unfinished `.tmp` directories; the oldest first.

    Checkpoints that were set aside are outdated once a newer one is complete. Nothing is outdated without a newer
    checkpoint with all files in the sizes that were written and synced to disk. spare: steps of further checkpoints to
    keep. keep_every: checkpoints after multiples of this many steps stay, too.
    """
    found = find_checkpoints(run)
    complete = [checkpoint for checkpoint in found if checkpoint.problem is None][:keep]
    if not complete:
        return []
    outdated = list(run.glob(".checkpoint-*.tmp"))
    for path in sorted(run.glob(f"checkpoint-*{SET_ASIDE}")):
        match = CHECKPOINT_NAME.fullmatch(path.name.removesuffix(SET_ASIDE))
        if match and int(match[1]) <= complete[0].step:
            outdated.append(path)
    for checkpoint in reversed(found):
        kept = checkpoint in complete or checkpoint.step in spare
        kept = kept or (keep_every is not None and checkpoint.step % keep_every == 0)
        if not kept and checkpoint.step < complete[0].step:
            outdated.append(checkpoint.path)
    return outdated


class BackgroundRemoval:
    """Removes directories in a thread: disks take seconds to free hundreds of gigabytes. `log`: for what fails."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._thread: threading.Thread | None = None

    def start(self, directories: Sequence[Path]) -> None:
        """Remove directories, after those that are being removed."""
        self.join()
        self._thread = threading.Thread(
            target=self._remove, args=(directories,), name="old checkpoints", daemon=True
        )
        self._thread.start()

    def join(self) -> None:
        """Wait until all are removed."""
        if self._thread is not None:
            self._thread.join()

    def _remove(self, directories: Sequence[Path]) -> None:
        for directory in directories:
            try:
                remove_checkpoint(directory)
            except FileNotFoundError:
                # It was being removed when it was listed.
                continue
            except OSError as error:
                self._log(f"{directory}: cannot be removed: {error.strerror}")
