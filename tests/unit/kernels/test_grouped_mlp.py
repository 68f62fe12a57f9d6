"""The MLP of all experts at once: values and gradients of each expert by itself, in float64."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import Tensor

from erniekit.kernels import grouped_forms, grouped_gemm
from erniekit.kernels.choice import use_forms
from erniekit.kernels.grouped_gemm import ExpertRows
from erniekit.kernels.grouped_mlp import ExpertWeight, grouped_mlp
from erniekit.kernels.quantize import dequantize, quantize
from tests.closeness import FLOAT32, assert_all_close, assert_close
from tests.unit.kernels.forms import TRITON

HIDDEN, WIDTH, RANK = SIZES = 6, 5, 3
FORMS = ["plain", "paddle", TRITON]
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
    counts: list[int],
    *,
    adapters: bool = False,
    frozen: bool = False,
    dtype: str = "float32",
    sizes: tuple[int, int, int] = SIZES,
) -> Case:
    experts, (hidden, width, rank) = len(counts), sizes
    shapes = {
        "x": [sum(counts), hidden],
        "gate_up": [experts, 2 * width, hidden],
        "down": [experts, hidden, width],
    }
    if adapters:
        shapes |= {"a1": [experts, 2 * rank, hidden], "b1": [experts, 2 * width, rank]}
        shapes |= {"a2": [experts, rank, width], "b2": [experts, hidden, rank]}
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in shapes.items():
        tensors[name] = paddle.to_tensor(rng.standard_normal(shape) * shape[-1] ** -0.5, dtype=dtype)
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
    weights = paddle.cos(paddle.arange(output.size, dtype=output.dtype)).reshape(output.shape)
    (output * weights).sum().backward()
    return {name: t.grad.numpy() for name, t in case.tensors.items() if t.grad is not None}


@pytest.fixture(params=FORMS, autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every form. The kernel of Paddle, which only GPUs have, is a loop here."""
    monkeypatch.setattr(grouped_forms, "batched_gemm", batched_gemm)
    dequantize_form = "triton" if request.param == "triton" else "plain"
    with use_forms(grouped_gemm=request.param, dequantize=dequantize_form):
        yield request.param


def batched_gemm(
    lhs: Tensor, rhs: Tensor, batch_sizes: list[int], trans_lhs: bool = False, trans_rhs: bool = False
) -> Tensor:
    """Paddle's `batched_gemm`, with the rows of each product between two bounds of `batch_sizes`."""
    assert all(type(size) is int and size > 0 for size in batch_sizes)
    assert sum(batch_sizes) == lhs.shape[0]
    assert lhs.dtype == rhs.dtype
    assert lhs.is_contiguous() and rhs.is_contiguous()
    parts = paddle.split(lhs, batch_sizes)
    if trans_lhs:
        assert not trans_rhs
        pairs = zip(parts, paddle.split(rhs, batch_sizes), strict=True)
        return paddle.stack([paddle.matmul(part, other, transpose_x=True) for part, other in pairs])
    assert rhs.shape[0] == len(batch_sizes)
    pairs = zip(parts, rhs.unbind(), strict=True)
    return paddle.concat([paddle.matmul(part, matrix, transpose_y=trans_rhs) for part, matrix in pairs])


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
    assert_all_close(found, wanted, FLOAT32)


# The sizes of tiles are 32 and 64. Bulk copies take rows of a multiple of 16 bytes, so not those of a rank of 5.
@pytest.mark.parametrize(
    ("counts", "sizes"), [([3, 0, 40], (40, 68, 5)), ([33, 2], (36, 64, 4))], ids=["rank 5", "rank 4"]
)
def test_several_tiles(counts: list[int], sizes: tuple[int, int, int]) -> None:
    exact = make_case(counts, adapters=True, dtype="float64", sizes=sizes)
    expected = by_expert(exact)
    case = make_case(counts, adapters=True, sizes=sizes)
    output = grouped_mlp(case.tensors["x"], *case.weights(), case.rows)
    assert_close(output, expected)
    assert_all_close(gradients(case, output), gradients(exact, expected), FLOAT32)


def test_frozen_experts_pass_gradients_to_their_input_alone() -> None:
    case = make_case([2, 3], frozen=True)
    found = gradients(case, grouped_mlp(case.tensors["x"], *case.weights(), case.rows))
    assert set(found) == {"x"}
    case.tensors["x"].stop_gradient = True
    assert grouped_mlp(case.tensors["x"], *case.weights(), case.rows).stop_gradient


@pytest.mark.parametrize("form", ["plain", "paddle"], indirect=True)
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


# A last group of 4 columns of 132 for gate and up, of 2 of 66 for down.
@pytest.mark.parametrize(("bits", "adapters"), [(8, False), (4, True)])
def test_quantized_weights(bits: int, adapters: bool) -> None:
    sizes, counts = (132, 66, 4), [3, 0, 34]
    case = make_case(counts, adapters=adapters, frozen=True, sizes=sizes)
    exact, weights = quantized(case, bits)
    expected = by_expert(exact)
    output = grouped_mlp(case.tensors["x"], *weights, case.rows)
    assert_close(output, expected)
    assert_all_close(gradients(case, output), gradients(exact, expected), FLOAT32)


@pytest.mark.parametrize("form", ["plain"], indirect=True)
def test_quantized_weights_with_dropout() -> None:
    case = make_case([4, 0, 2], adapters=True, frozen=True, sizes=(8, 6, 3))
    exact, weights = quantized(case, 4)
    expected = by_expert(exact)
    gate_up, down = (weight._replace(dropout=1e-9) for weight in weights)
    output = grouped_mlp(case.tensors["x"], gate_up, down, case.rows)
    assert_close(output, expected)
    assert_all_close(gradients(case, output), gradients(exact, expected), FLOAT32)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_no_dequantized_weight_is_kept_for_the_backward_pass(
    dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def recorded(*arguments: Any) -> Tensor:
        made.append(dequantize(*arguments))
        return made[-1]

    monkeypatch.setattr(grouped_gemm, "dequantize", recorded)
    case = make_case([4, 1], adapters=True, frozen=True, sizes=(8, 6, 4))
    weights = [weight._replace(dropout=dropout) for weight in quantized(case, 8)[1]]
    output = grouped_mlp(case.tensors["x"], *weights, case.rows)
    assert made and not output.stop_gradient
    left = [weakref.ref(tensor) for tensor in made]
    made.clear()
    assert not any(reference() for reference in left)


def quantized(case: Case, bits: int) -> tuple[Case, list[ExpertWeight]]:
    """The case with quantized matrices, and with their values in float64."""
    exact = {name: tensor.detach().astype("float64") for name, tensor in case.tensors.items()}
    weights = []
    for name, weight in zip(("gate_up", "down"), case.weights(), strict=True):
        matrices = quantize(case.tensors[name], bits)
        exact[name] = dequantize(matrices, "float64")
        weights.append(weight._replace(weight=matrices))
    for name, tensor in exact.items():
        tensor.stop_gradient = case.tensors[name].stop_gradient
    return Case(exact, case.counts), weights


def test_the_host_counts_rows_only_if_it_must() -> None:
    rows = ExpertRows(paddle.to_tensor([0, 4, 4, 6], dtype="int32"), 6)
    assert "counts" not in vars(rows)
    assert rows.counts == [4, 0, 2]
    assert ExpertRows.of([4, 0, 2]).offsets.tolist() == [0, 4, 4, 6]
