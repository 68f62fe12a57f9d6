"""What the first and the second signal do."""

import os
import signal
from types import SimpleNamespace

import pytest

from erniekit import interrupt
from erniekit.interrupt import InterruptGuard


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_noted_and_the_second_stops_at_once(number: signal.Signals, status: int) -> None:
    names: list[str] = []
    before = signal.getsignal(number)
    with InterruptGuard(names.append) as guard:
        assert guard.exit_status == 0
        guard.check()
        os.kill(os.getpid(), number)
        assert guard.requested == number
        assert guard.exit_status == status
        assert names == [number.name]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            signal.sigtimedwait([], 1)
    assert signal.getsignal(number) == before


def test_the_same_signal_soon_after_is_the_same_request(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(interrupt, "time", SimpleNamespace(monotonic=lambda: now[0]))
    names: list[str] = []
    with InterruptGuard(names.append, same_seconds=0.3) as guard:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            now[0] += 0.1
        assert names == ["SIGTERM"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.sigtimedwait([], 1)
        now[0] += 0.3
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 1)
        assert guard.exit_status == 143


@pytest.mark.parametrize("other", [signal.SIGTERM, signal.SIGINT])
def test_a_terminal_that_closes_is_no_second_request(
    monkeypatch: pytest.MonkeyPatch, other: signal.Signals
) -> None:
    now = [100.0]
    monkeypatch.setattr(interrupt, "time", SimpleNamespace(monotonic=lambda: now[0]))
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    with InterruptGuard(signals=signals, same_seconds=2.0) as guard:
        os.kill(os.getpid(), other)
        os.kill(os.getpid(), signal.SIGHUP)
        now[0] += 10
        os.kill(os.getpid(), signal.SIGHUP)
        assert guard.requested == other
    with InterruptGuard(signals=signals, same_seconds=2.0) as guard:
        os.kill(os.getpid(), signal.SIGHUP)
        # Service managers send both.
        os.kill(os.getpid(), other)
        assert guard.exit_status == 129
        now[0] += 2
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), other)
            signal.sigtimedwait([], 1)


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with InterruptGuard(signals=[signal.SIGHUP]) as guard:
            os.kill(os.getpid(), signal.SIGHUP)
            assert guard.requested is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
