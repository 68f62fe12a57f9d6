"""Experts that are spread over processes compute what they compute in one."""

import pytest

from erniekit.distributed.watchdog import PEER_LOST
from tests.distributed import expert_checks
from tests.distributed.expert_checks import CASES, dispatch_checks
from tests.distributed.processes import run, run_to_end


@pytest.mark.parametrize("world", [2, 4])
def test_adversarial_routing(world: int) -> None:
    assert [rank["cases"] for rank in run(world, dispatch_checks, world)] == [len(CASES)] * world


def test_shared_experts_are_computed_while_tokens_travel() -> None:
    results = run(2, expert_checks.overlap_checks, 2)
    assert [rank["cases"] for rank in results] == [len(CASES)] * 2


def test_an_exchange_that_is_waited_for_is_watched() -> None:
    ended = run_to_end(2, expert_checks.never_arrives, 2)
    assert [rank.status for rank in ended] == [1, 1]
    assert "s in all_to_all (call 2 of ranks 0, 1); did not enter it: rank 1" in ended[0].output
    assert "rank 1 entered barrier, its call 1" in ended[0].output


def test_an_exchange_that_breaks_on_the_way_is_reported() -> None:
    for rank in run_to_end(2, expert_checks.breaks_on_the_way, 2):
        assert rank.status
        assert f"{PEER_LOST}: another rank ended during all_to_all (call 1 of ranks 0, 1)" in rank.output
