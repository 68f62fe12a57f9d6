"""Starting processes, and the end of a run when one of them dies, hangs or is interrupted."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from erniekit.distributed.watchdog import PEER_LOST
from tests.distributed import checks
from tests.distributed.processes import OTHERS_HANG, ROOT, run_to_end

SLEEP = "import time; time.sleep(100_000)"  # forever: until the supervisor ends it
# Handles signals as a run does: the first one is recorded, the second one ends it.
CAREFUL = """
import os, signal, sys, time
got = []
def take(number, frame):
    got.append(number)
    if len(got) > 1: sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP): signal.signal(number, take)
print("ready", flush=True)
while not got: time.sleep(0.01)
print("saved after", got[0], flush=True)
time.sleep(float(os.environ.get("SAVING", "0")))
print("done", flush=True)
sys.exit(128 + got[0])
"""
TIMEOUTS = {"settle": 0.5, "grace": 1.0, "linger": 1000.0, "same": 1000.0}


def start(
    snippets: list[str],
    logs: Path,
    resume_command: str | None = None,
    timeouts: dict[str, float] = TIMEOUTS,
    **options: Any,
) -> subprocess.Popen[str]:
    settings = {
        "snippets": snippets,
        "logs": str(logs),
        "timeouts": timeouts,
        "resume_command": resume_command,
    }
    command = [sys.executable, "-m", "tests.distributed.supervised", json.dumps(settings)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen(command, cwd=ROOT, **pipes)


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + OTHERS_HANG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def log(logs: Path, rank: int) -> str:
    file = logs / f"rank-{rank}.log"
    return file.read_text() if file.exists() else ""


def pids(logs: Path, count: int) -> list[int]:
    """The pids of all ranks, each the first line of a log."""
    until(lambda: all("\n" in log(logs, rank) for rank in range(count)))
    return [int(log(logs, rank).split()[0]) for rank in range(count)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_output_and_logs(tmp_path: Path) -> None:
    code = "import os, sys\nr = os.environ['PADDLE_TRAINER_ID']\nprint('out', r)\nprint('err', r, file=sys.stderr)"
    (tmp_path / "rank-0.log").write_text("of an earlier start\n")
    process = start([code] * 3, tmp_path)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (0, "out 0\n", "err 0\n")
    assert log(tmp_path, 0).startswith("of an earlier start\n")
    for rank in range(3):
        assert sorted(log(tmp_path, rank).splitlines()[-2:]) == [f"err {rank}", f"out {rank}"]


def test_a_rank_that_dies_ends_the_run(tmp_path: Path) -> None:
    failing = "import sys; print('before'); print('error: the disk is full\\n  twice', file=sys.stderr); sys.exit(7)"
    stubborn = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
    process = start([SLEEP, stubborn, failing], tmp_path, "erniekit train x.yaml --resume")
    _, err = process.communicate()
    assert process.returncode == 7
    cause = "error: rank 2 exited with status 7, so the other ranks were terminated."
    assert err.splitlines()[-5:] == [
        f"{cause} The end of its log, {tmp_path}/rank-2.log:",
        "  error: the disk is full",
        "    twice",
        "Continue with:",
        "  erniekit train x.yaml --resume",
    ]
    assert (tmp_path / "failed").read_text() == "rank 2 exited with status 7"


@pytest.mark.parametrize(
    "failing",
    [
        ["import sys; sys.exit('error: the disk is full')", SLEEP],
        ["import sys; sys.exit('error: the disk is full')"] * 2,
    ],
    ids=["first", "all"],
)
def test_an_error_on_the_terminal_is_not_repeated(tmp_path: Path, failing: list[str]) -> None:
    process = start(failing, tmp_path)
    _, err = process.communicate()
    assert process.returncode == 1
    first, second, last = err.splitlines()
    assert first == "error: the disk is full" and last == "Nothing was saved yet."
    message = (
        r"error: rank (\d) exited with status 1, so the other ranks were terminated\. Its last lines are above; its "
        rf"log is {re.escape(str(tmp_path))}/rank-\1\.log"
    )
    assert re.fullmatch(message, second)


@pytest.mark.parametrize(("seconds", "limit"), [(1, 1000.0), (100_000, 0.1)], ids=["waits", "limit"])
def test_a_rank_that_writes_a_checkpoint_is_waited_for(tmp_path: Path, seconds: float, limit: float) -> None:
    """Another one has failed; this one is killed when it has written its part, or after the time limit."""
    saving = f"""
import signal, sys, time
from pathlib import Path
from erniekit.checkpoint.parts import PartFile
got = []
signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
directory = Path({str(tmp_path)!r}) / ".checkpoint-000002.tmp"
directory.mkdir()
part = PartFile(directory, 0)
print("ready", flush=True)
while not got: time.sleep(0.01)
time.sleep({seconds})
print("saved", flush=True)
part.close()
{SLEEP}
"""
    failing = f"""
import sys, time
while "ready" not in open({str(tmp_path / "rank-0.log")!r}).read(): time.sleep(0.01)
sys.exit(7)
"""
    short = TIMEOUTS | {"grace": 0.05, "settle": 0.1}
    process = start([saving, failing], tmp_path, timeouts=short | {"save": limit})
    assert process.wait() == 7
    assert log(tmp_path, 0) == ("ready\nsaved\n" if seconds < limit else "ready\n")


def test_the_cause_is_waited_for(tmp_path: Path) -> None:
    """Rank 0 ends because rank 1 does, but before it."""
    consequence = (
        f"import os, sys; print(os.getpid(), flush=True); sys.exit('error: {PEER_LOST}: rank 1 ended')"
    )
    failing = f"""
import os, sys, time
log = {str(tmp_path / "rank-0.log")!r}
while not (os.path.exists(log) and "error" in open(log).read()): time.sleep(0.02)
while os.path.exists("/proc/" + open(log).read().split()[0]): time.sleep(0.02)
sys.exit("error: the disk is full")
"""
    process = start([consequence, failing], tmp_path, timeouts=TIMEOUTS | {"settle": 1000.0})
    _, err = process.communicate()
    assert process.returncode == 1
    assert "error: rank 1 exited with status 1" in err and "  error: the disk is full\n" in err
    assert (tmp_path / "failed").read_text() == "rank 1 exited with status 1"


def test_a_rank_that_is_killed_is_reported(tmp_path: Path) -> None:
    code = f"import os; print(os.getpid(), flush=True); {SLEEP}"
    process = start([code] * 3, tmp_path)
    found = pids(tmp_path, 3)
    os.kill(found[1], signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 1
    assert (
        "error: rank 1 was killed by SIGKILL, so the other ranks were terminated. The end of its log, " in err
    )
    assert "memory of the machine, or of its container or job, runs out" in err
    assert err.endswith("Nothing was saved yet.\n")
    assert not any(map(alive, found))


def test_a_rank_without_output_is_reported_with_its_log(tmp_path: Path) -> None:
    process = start([SLEEP, "import sys; sys.exit(3)"], tmp_path)
    _, err = process.communicate()
    assert process.returncode == 3
    assert f"terminated. Its log, {tmp_path / 'rank-1.log'}, is empty\n" in err
    assert "runs out" not in err


def test_the_cause_is_reported_of_ranks_that_fail_together(tmp_path: Path) -> None:
    work = (
        "from erniekit.runtime import configure; configure('cpu', 1, 0)\n"
        "from tests.distributed.checks import death; death(3)"
    )
    process = start([work] * 3, tmp_path)
    _, err = process.communicate()
    assert process.returncode == 9
    assert "error: rank 1 exited with status 9" in err
    assert PEER_LOST in log(tmp_path, 0)


def test_what_a_rank_leaves_behind_is_killed(tmp_path: Path) -> None:
    child = f"import os; print(os.getpid(), flush=True); {SLEEP}"
    go = tmp_path / "go"
    code = (
        f"import os, subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.02)"
    )
    process = start([code] * 2, tmp_path)
    found = pids(tmp_path, 2)
    assert all(map(alive, found))
    go.touch()
    process.communicate()
    assert process.returncode == 0
    until(lambda: not any(map(alive, found)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_every_rank_once(tmp_path: Path, number: signal.Signals) -> None:
    process = start([CAREFUL] * 3, tmp_path)
    until(lambda: all("ready" in log(tmp_path, rank) for rank in range(3)))
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 128 + number
    assert err == ""
    for rank in range(3):
        assert log(tmp_path, rank) == f"ready\nsaved after {int(number)}\ndone\n"


def test_ranks_stop_and_continue_with_the_launcher(tmp_path: Path) -> None:
    """Ctrl-Z: ranks that went on would wait for ever when nobody reads their output."""
    code = f"import os; print(os.getpid(), flush=True); {SLEEP}"
    process = start([code] * 2, tmp_path)
    ranks = pids(tmp_path, 2)

    def states() -> set[str]:
        return {
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            for pid in (process.pid, *ranks)
        }

    process.send_signal(signal.SIGTSTP)
    until(lambda: states() == {"T"})
    process.send_signal(signal.SIGCONT)
    until(lambda: "T" not in states())
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143


def test_a_second_signal_kills(tmp_path: Path) -> None:
    endless = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; print('ready', flush=True); "
    # Another rank is lost with it, which is no failure.
    lost = CAREFUL.replace("if len(got) > 1: sys.exit(128 + number)", "if len(got) > 1: sys.exit(1)")
    environment, timeouts = os.environ | {"SAVING": "100000"}, TIMEOUTS | {"same": 0.0}
    process = start([CAREFUL, endless + SLEEP, lost], tmp_path, env=environment, timeouts=timeouts)
    until(lambda: all("ready" in log(tmp_path, rank) for rank in range(3)))
    process.send_signal(signal.SIGINT)
    until(lambda: all("saved" in log(tmp_path, rank) for rank in (0, 2)))
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err == ""


def test_a_signal_that_comes_twice_at_once_is_passed_on_once(tmp_path: Path) -> None:
    process = start([CAREFUL] * 2, tmp_path, env=os.environ | {"SAVING": "0.5"})
    until(lambda: all("ready" in log(tmp_path, rank) for rank in range(2)))
    process.send_signal(signal.SIGTERM)
    until(lambda: "saved" in log(tmp_path, 0))
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate()
    assert (process.returncode, err) == (143, "")
    assert all(log(tmp_path, rank).endswith("\ndone\n") for rank in range(2))


def test_a_rank_that_does_not_end_is_killed(tmp_path: Path) -> None:
    process = start(["pass", SLEEP], tmp_path, timeouts=TIMEOUTS | {"linger": 1.0})
    _, err = process.communicate()
    assert process.returncode == 1
    assert err == "error: killed rank 1, still running 1 s after another rank had finished\n"


def test_ranks_die_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    code = f"import os; print(os.getpid(), flush=True); {SLEEP}"
    process = start([code] * 3, tmp_path)
    found = pids(tmp_path, 3)
    process.kill()
    process.wait()
    until(lambda: not any(map(alive, found)))


def test_a_terminal_stays_one(tmp_path: Path) -> None:
    code = (
        "import os, sys; print(sys.stdout.isatty(), os.get_terminal_size().columns)\n"
        "for i in range(5): sys.stdout.write(f'\\r\\x1b[2Kstep {i}'); sys.stdout.flush()\n"
        "print('\\r\\x1b[2Kdone')"
    )
    source, end = pty.openpty()
    import termios

    termios.tcsetwinsize(end, (30, 123))
    process = start([code, "pass"], tmp_path, stdout=end, stderr=end)
    os.close(end)
    assert process.wait() == 0
    shown = os.read(source, 10000).decode()
    os.close(source)
    assert "True 123" in shown and "step 3" in shown
    assert log(tmp_path, 0) == "True 123\ndone\n"


def test_a_hang_is_reported() -> None:
    ended = run_to_end(3, checks.hang, 3)
    assert [rank.status for rank in ended] == [1, 1, 1]
    reports = [rank.output for rank in ended if "error: rank" in rank.output]
    assert reports
    for text in reports:
        assert "s in all_gather (call 3 of ranks 0-2); did not enter it: rank 1" in text
        assert "rank 1 entered all_reduce, its call 2" in text
        assert ", in hang" in text  # the stack of the main thread
    # The rank that hangs ends, too, and prints its stack.
    assert f"error: {PEER_LOST}: rank" in ended[1].output
    assert "time.sleep(1000)" in ended[1].output


def test_a_rank_that_is_busy_is_waited_for(tmp_path: Path) -> None:
    ended = run_to_end(2, checks.busy, 2, str(tmp_path / "notices"))
    assert [rank.status for rank in ended] == [0, 0], ended
    assert "waiting in barrier (call 1 of ranks 0, 1) for rank 0: saving" in ended[1].output


def test_ranks_that_read_longer_than_the_main_process_are_waited_for(tmp_path: Path) -> None:
    ended = run_to_end(2, checks.slow_reader, 2, str(tmp_path / "notices"))
    assert [rank.status for rank in ended] == [0, 0], ended
    assert "for rank 1: encoding the data" in ended[0].output
    assert "for rank 1: loading the model" in ended[0].output


def test_different_collectives_are_reported() -> None:
    ended = run_to_end(2, checks.mismatch, 2)
    assert [rank.status for rank in ended] == [1, 1]
    assert (
        "rank 0 is in all_reduce (call 1 of ranks 0, 1), but rank 1 is in barrier, its call 1"
        in ended[0].output
    )
    assert f"{PEER_LOST}: rank 0 ended" in ended[1].output


def test_a_rank_that_dies_is_noticed_without_a_launcher() -> None:
    ended = run_to_end(3, checks.death, 3)
    assert ended[1].status == 9
    for rank in (0, 2):
        assert ended[rank].status == 1
        assert PEER_LOST in ended[rank].output


def test_a_failure_on_another_machine_ends_the_ranks_here() -> None:
    for rank in run_to_end(2, checks.stopped_elsewhere, 2):
        assert rank.status == 1
        assert f"error: {PEER_LOST}: rank 7 was killed by SIGKILL" in rank.output
