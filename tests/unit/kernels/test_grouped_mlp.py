"""The MLP of all experts at once: values and gradients of each expert by itself, in float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import Tensor

from erniekit.kernels.grouped_gemm import ExpertRows
from erniekit.kernels.grouped_mlp import ExpertWeight, grouped_mlp
from tests.closeness import assert_all_close, assert_close

HIDDEN, WIDTH, RANK = 6, 5, 3
COUNTS = {
    "uneven": [4, 1, 7],
    "empty": [0, 5, 0, 3, 0],
    "one expert": [6],
    "none": [0, 0],
    "a row each": [1, 1, 1, 1],
}


class Case(NamedTuple):
    """Tensors by name: x, gate_up, down, and with adapters a1, b1, a2, b2."""

    tensors: dict[str, Tensor]
    counts: list[int]

    @property
    def rows(self) -> ExpertRows:
        return ExpertRows.of(self.counts)

    def weights(self, dropout: float = 0.0) -> tuple[ExpertWeight, ExpertWeight]:
        t = self.tensors
        if "a1" not in t:
            return ExpertWeight(t["gate_up"]), ExpertWeight(t["down"])
        return (
            ExpertWeight(t["gate_up"], t["a1"], t["b1"], 2.0, dropout),
            ExpertWeight(t["down"], t["a2"], t["b2"], 0.5, dropout),
        )


def make_case(
    counts: list[int], *, adapters: bool = False, frozen: bool = False, dtype: str = "float32"
) -> Case:
    experts = len(counts)
    shapes = {
        "x": [sum(counts), HIDDEN],
        "gate_up": [experts, 2 * WIDTH, HIDDEN],
        "down": [experts, HIDDEN, WIDTH],
    }
    if adapters:
        shapes |= {"a1": [experts, 2 * RANK, HIDDEN], "b1": [experts, 2 * WIDTH, RANK]}
        shapes |= {"a2": [experts, RANK, WIDTH], "b2": [experts, HIDDEN, RANK]}
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in shapes.items():
        tensors[name] = paddle.to_tensor(rng.standard_normal(shape), dtype=dtype)
        tensors[name].stop_gradient = frozen and name in ("gate_up", "down")
    return Case(tensors, counts)


def by_expert(case: Case) -> Tensor:
    """Each expert by itself, its matrices merged with their adapters, with autograd."""
    t, outputs, start = case.tensors, [], 0
    for e, count in enumerate(case.counts):
        x = t["x"][start : start + count]
        gate_up, down = t["gate_up"][e], t["down"][e]
        if "a1" in t:
            halves = zip(t["b1"][e].split(2), t["a1"][e].split(2), strict=True)
            gate_up = gate_up + 2.0 * paddle.concat([paddle.matmul(b, a) for b, a in halves])
            down = down + 0.5 * paddle.matmul(t["b2"][e], t["a2"][e])
        gate, up = paddle.matmul(x, gate_up, transpose_y=True).split(2, axis=1)
        outputs.append(paddle.matmul(F.silu(gate) * up, down, transpose_y=True))
        start += count
    return paddle.concat(outputs)


def gradients(case: Case, output: Tensor) -> dict[str, np.ndarray]:
    (output * paddle.cos(output.detach())).sum().backward()
    return {name: t.grad.numpy() for name, t in case.tensors.items() if t.grad is not None}


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize(("adapters", "frozen"), [(False, False), (True, True), (True, False)])
def test_values_and_gradients(counts: list[int], adapters: bool, frozen: bool) -> None:
    exact = make_case(counts, adapters=adapters, frozen=frozen, dtype="float64")
    expected = by_expert(exact)
    case = make_case(counts, adapters=adapters, frozen=frozen)
    output = grouped_mlp(case.tensors["x"], *case.weights(), case.rows)
    assert output.shape == [sum(counts), HIDDEN]
    if not sum(counts):
        return
    assert_close(output, expected)
    wanted, found = gradients(exact, expected), gradients(case, output)
    assert set(found) == {name for name in case.tensors if not frozen or name not in ("gate_up", "down")}
    assert_all_close(found, wanted)


def test_frozen_experts_pass_gradients_to_their_input_alone() -> None:
    case = make_case([2, 3], frozen=True)
    found = gradients(case, grouped_mlp(case.tensors["x"], *case.weights(), case.rows))
    assert set(found) == {"x"}
    case.tensors["x"].stop_gradient = True
    assert grouped_mlp(case.tensors["x"], *case.weights(), case.rows).stop_gradient


def test_dropout_zeroes_inputs_of_the_adapters() -> None:
    """With nearly everything dropped, what is left are the matrices themselves."""
    case = make_case([4, 1, 7], adapters=True)
    kept = grouped_mlp(case.tensors["x"], *case.weights(1e-9), case.rows)
    assert_close(kept, by_expert(case))
    dropped = grouped_mlp(case.tensors["x"], *case.weights(1 - 1e-7), case.rows)
    bare = Case({name: case.tensors[name] for name in ("x", "gate_up", "down")}, case.counts)
    assert_close(dropped, by_expert(bare))
    case.tensors["x"].clear_gradient(False)
    wanted = gradients(bare, by_expert(bare))
    for tensor in case.tensors.values():
        tensor.clear_gradient(False)
    found = gradients(case, grouped_mlp(case.tensors["x"], *case.weights(1 - 1e-7), case.rows))
    assert_all_close({name: found[name] for name in wanted}, wanted)


def test_the_host_counts_rows_only_if_it_must() -> None:
    rows = ExpertRows(paddle.to_tensor([0, 4, 4, 6], dtype="int32"), 6)
    assert "counts" not in vars(rows)
    assert rows.counts == [4, 0, 2]
    assert ExpertRows.of([4, 0, 2]).offsets.tolist() == [0, 4, 4, 6]
