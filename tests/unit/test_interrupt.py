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
