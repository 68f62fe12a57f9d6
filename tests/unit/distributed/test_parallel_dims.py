"""The ranks of each process group, and parallel degrees that are refused."""

from types import SimpleNamespace
from typing import Any

import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erniekit.distributed.mesh import Communicator, connect, local_mesh
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.errors import ConfigError


@st.composite
def parallel_dims(draw: st.DrawFn) -> ParallelDims:
    expert, context = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    least = next(n for n in range(1, 37) if n % expert == 0 and n % context == 0)
    return ParallelDims(least * draw(st.integers(1, 3)), expert, context)


@given(parallel_dims())
def test_groups(dims: ParallelDims) -> None:
    dims.validate()
    by_rank = [dims.group_ranks(rank) for rank in range(dims.world)]
    for name in ("world", "expert", "replicas", "context", "data"):
        groups = {groups[name] for groups in by_rank}
        assert sorted(rank for group in groups for rank in group) == list(range(dims.world))
        assert all(rank in groups[name] for rank, groups in enumerate(by_rank))
    for rank, groups in enumerate(by_rank):
        # Consecutive ranks share experts, and context is the fastest of context and data.
        assert groups["expert"] == tuple(
            range(rank - rank % dims.expert, rank - rank % dims.expert + dims.expert)
        )
        assert all(other % dims.expert == rank % dims.expert for other in groups["replicas"])
        assert {other // dims.context for other in groups["context"]} == {rank // dims.context}
        assert all(other % dims.context == rank % dims.context for other in groups["data"])
        assert (len(groups["replicas"]), len(groups["data"])) == (dims.replicas, dims.data)


@pytest.mark.parametrize(
    ("dims", "experts", "message"),
    [
        (
            ParallelDims(4, expert=3),
            None,
            "parallel.expert is 3, .* 4 processes of this run (--devices); use 1, 2 or 4",
        ),
        (ParallelDims(4, context=8), None, "parallel.context is 8, which does not divide"),
        (ParallelDims(1, expert=2), None, "does not divide the 1 process of this run .*; use 1, or another"),
        (
            ParallelDims(8, expert=8),
            (12, 12),
            "parallel.expert is 8, .* the model's 12 experts; use 1, 2 or 4 with",
        ),
        (ParallelDims(4, expert=4), (8, 6), "the model's 6 experts; use 1 or 2 with these --devices"),
        (ParallelDims(2, expert=2), (), "parallel.expert is 2, but the model has no experts; set it to 1"),
    ],
)
def test_degrees_that_do_not_fit(dims: ParallelDims, experts: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(").replace(")", r"\)")):
        dims.validate(experts)


@pytest.mark.parametrize(
    ("context", "heads", "message"),
    [
        (3, (4, 2), "parallel.context is 3, .* 4 attention heads .* use 1, 2 or 4 with these --devices"),
        # Three attention heads of a process would need one and a half of six key/value heads.
        (4, (12, 6), "12 attention heads and 6 key/value heads; use 1, 2, 3, 6 or 12 with"),
        (8, (20, 4), "use 1, 2 or 4 with these --devices"),
    ],
)
def test_heads_that_do_not_divide(context: int, heads: tuple[int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ParallelDims(24, context=context).validate(None, heads)


def test_heads_that_divide() -> None:
    for context, heads in ((4, (4, 1)), (4, (20, 4)), (2, (20, 4)), (8, (64, 8)), (16, (64, 8)), (1, (5, 5))):
        ParallelDims(16, context=context).validate(None, heads)


@pytest.mark.parametrize("experts", [None, (64, 64), (8,)])
def test_degrees_that_fit(experts: tuple[int, ...] | None) -> None:
    ParallelDims(8, expert=4, context=2).validate(experts)
    ParallelDims(8, context=8).validate(())


def test_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = local_mesh()
    assert mesh.is_main
    assert {mesh.world.size, mesh.expert.size, mesh.replicas.size, mesh.context.size, mesh.data.size} == {1}
    with mesh.long_operation("saving"):
        pass
    mesh.close()

    monkeypatch.delenv("PADDLE_TRAINERS_NUM", raising=False)
    assert connect(ParallelDims()).world.size == 1
    with pytest.raises(ConfigError, match="for 2 processes, but the launcher started 1"):
        connect(ParallelDims(2))


def test_nccl_connects_each_group_as_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the groups of this rank: other groups are created, too, but not used."""
    done: list[tuple[str, tuple[int, ...]]] = []

    def new_group(ranks: list[int]) -> tuple[int, ...]:
        done.append(("made", tuple(ranks)))
        return tuple(ranks)

    def all_reduce(tensor: Any, group: tuple[int, ...]) -> None:
        assert tensor.size
        done.append(("reduced", group))

    monkeypatch.setattr(paddle.distributed, "new_group", new_group)
    monkeypatch.setattr(paddle.distributed, "all_reduce", all_reduce)
    connection: Any = Communicator.__new__(Communicator)
    connection.worker, connection._gloo, connection._groups = SimpleNamespace(rank=1), None, {}
    connection.watchdog = SimpleNamespace(track=lambda ranks: None)
    connection.mesh(ParallelDims(4, expert=2))
    assert done == [
        ("made", (0, 1, 2, 3)), ("reduced", (0, 1, 2, 3)), ("made", (0, 1)), ("reduced", (0, 1)), ("made", (2, 3)),
        ("made", (0, 2)), ("made", (1, 3)), ("reduced", (1, 3)),
    ]  # fmt: skip
