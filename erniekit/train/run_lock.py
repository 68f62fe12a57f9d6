"""Locks a run's directory, so that only one run at a time trains in it.

The kernel's lock on `.run.lock` is released when the process ends, even if it is killed. The file also names the
holder: host, process and start time. The text is used where the kernel's lock may not be visible on other machines.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Literal

from erniekit.errors import ConfigError

LOCK_FILE = ".run.lock"
# Local file systems: all processes that can write to them use locks of the same kernel.
_LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay"}
_MOST = 4096  # characters of the file
_MOST_PID = 1 << 22
_Grip = Literal["held", "taken", "no locks"]


@dataclass(frozen=True)
class Holder:
    """The holder of a lock. boot: identifies the boot of the machine; birth: start of the process since the boot."""

    host: str
    pid: int
    started: str
    boot: str = ""
    birth: str = ""

    @classmethod
    def this(cls) -> Holder:
        """This process."""
        started = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        return cls(socket.gethostname(), os.getpid(), started, _boot(), _birth(os.getpid()))

    def is_gone(self) -> bool:
        """Whether the process has certainly ended. False for processes of other machines."""
        here = Holder.this()
        if self.host != here.host:
            return False
        return self.boot != here.boot or self.birth != _birth(self.pid) or not _exists(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started}"


@contextmanager
def lock_run_directory(run: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Lock the directory while this run trains. Raises ConfigError if another run has the lock."""
    with (run / LOCK_FILE).open("a+", encoding="utf-8") as file:
        grip = _take(file)
        before = _read(file)
        _refuse_if_held(run, grip, before)
        if grip == "no locks":
            log(f"note: the disk of {run} does not support locks; the text in {LOCK_FILE} is used instead")
        if before is not None:
            log(f"{run}: {before}, has ended without releasing its lock; this run takes it over")
        _write(file, json.dumps(asdict(Holder.this())))
        try:
            yield
        finally:
            # The directory may be deleted, or its disk full.
            with suppress(OSError):
                _write(file, "")


def refuse_second_run(run: Path) -> None:
    """Raise ConfigError if another run trains in a directory."""
    try:
        with (run / LOCK_FILE).open("r+", encoding="utf-8") as file:
            grip = _take(file)
            before = _read(file)
    except OSError:
        # No run has used the directory, or it is not writable, which other checks report.
        return
    _refuse_if_held(run, grip, before)


def _refuse_if_held(run: Path, grip: _Grip, holder: Holder | None) -> None:
    advice = "wait until it ends, or choose another directory (train.output_dir=...)"
    if grip == "held":
        who = "another process" if holder is None else f"another run, {holder},"
        raise ConfigError(f"train.output_dir: {who} trains in {run}; {advice}")
    if holder is None or holder.is_gone() or (grip == "taken" and _is_local(run)):
        return
    raise ConfigError(
        f"train.output_dir: another run, {holder}, has the lock of {run}. If it trains, {advice}. If it is gone, "
        f"remove {run / LOCK_FILE}: this disk does not show whether a process of another machine lives"
    )


def _take(file: IO[str]) -> _Grip:
    """Lock the file for this process. Unlike a lock of the open file, worker processes do not inherit it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return "held"
    except OSError:
        return "no locks"
    return "taken"


def _read(file: IO[str]) -> Holder | None:
    """The holder in the file; None if it is empty or invalid."""
    file.seek(0)
    try:
        found = Holder(**json.loads(file.read(_MOST)))
    except (ValueError, TypeError, RecursionError):
        return None
    texts = (found.host, found.started, found.boot, found.birth)
    is_one = all(isinstance(text, str) for text in texts) and isinstance(found.pid, int)
    return found if is_one and 0 < found.pid <= _MOST_PID else None


def _write(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _birth(pid: int) -> str:
    """The start of a process in ticks since the boot; "" if it does not exist, or the system does not provide it."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return status.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _is_local(path: Path) -> bool:
    """Whether `path` is on a local file system."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        if number in before.split()[2:3] and after.split()[:1]:
            return after.split()[0] in _LOCAL
    return False
