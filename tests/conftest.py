"""What every test has: the process settings of a real run, before anything imports Paddle, and a cache of its own."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from erniekit.runtime import prepare_environment

prepare_environment()
# A suite that was started in the background of a script ignores Ctrl-C, and so would the commands that it runs.
signal.signal(signal.SIGINT, signal.default_int_handler)
# How long an example takes says nothing but how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(autouse=True, scope="session")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Encoded data and fetched pictures of tests stay out of the user's cache, in child processes too."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(home))
        yield home
