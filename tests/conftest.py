"""What every test has: the process settings of a real run, before anything imports Paddle, a cache, its markers."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from erniekit.runtime import prepare_environment

prepare_environment()
# Kernels for GPUs run on CPU tensors. Triton asks once, when it is first imported.
os.environ["TRITON_INTERPRET"] = "1"
# Each process of pytest-xdist computes on one core: with as many threads as cores they would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    CORES = sorted(os.sched_getaffinity(0))
    WORKER = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    os.sched_setaffinity(0, {CORES[WORKER % len(CORES)]})
# A suite that was started in the background of a script ignores Ctrl-C, and so would the commands that it runs.
signal.signal(signal.SIGINT, signal.default_int_handler)
# How long an example takes says nothing but how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

TESTS = Path(__file__).parent
LONGEST = "test_documents.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The folder of a test is its marker, such as unit or numerics.

    The longest file comes first, so that it does not run alone at the end.
    """
    items.sort(key=lambda item: item.path.name != LONGEST)
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        item.add_marker(getattr(pytest.mark, folder))


@pytest.fixture(autouse=True, scope="session")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Encoded data and fetched images of tests stay out of the user's cache, in child processes too."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(home))
        yield home
