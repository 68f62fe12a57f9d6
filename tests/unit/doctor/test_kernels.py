"""The doctor's checks of kernels pass here, and fail for kernels that compute something else."""

from functools import partial
from typing import Any

import paddle
import pytest
from paddle import Tensor

from erniekit.doctor import attention, cases, timings
from erniekit.doctor.attention import SEQUENCES, PackedSequence, check_attention
from erniekit.doctor.cases import CASES, SMALL, Sizes
from erniekit.doctor.check import run_check
from erniekit.doctor.kernels import check_form, check_no_rows, kernel_checks
from erniekit.kernels.choice import FORMS
from erniekit.kernels.swiglu import swiglu
from tests.unit.kernels.forms import TRITON

TINY = Sizes(
    tokens=9, hidden=32, heads=4, kv_heads=2, head_dim=16, experts=4, top_k=2, inner=16, rank=4, vocab=40
)


@pytest.mark.parametrize("check", kernel_checks("cpu"), ids=lambda check: check.name)
def test_kernels_are_right(check: Any) -> None:
    assert run_check(check).status == "ok"


def test_a_gpu_checks_each_form_in_both_types() -> None:
    assert CASES.keys() | {"adamw"} == FORMS.keys()
    names = [check.name for check in kernel_checks("gpu")]
    for kernel in CASES:
        for form in FORMS[kernel]:
            assert (f"{kernel}, {form}, bfloat16" in names) == (form != "cpu")
            assert (f"{kernel}, {form}, no rows" in names) == (form != "cpu")
    assert "rope, triton, float32" in names
    assert "attention, flashmask, float32" not in names


@pytest.mark.parametrize("form", [TRITON])
@pytest.mark.parametrize(
    "kernel", [kernel for kernel in CASES if "triton" in FORMS[kernel] and kernel != "grouped_gemm"]
)
def test_the_calls_fit_the_triton_forms(kernel: str, form: str) -> None:
    assert check_form(kernel, form, "float32", TINY).status == "ok"
    assert check_no_rows(kernel, form, "float32", TINY).status == "ok"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda *x: swiglu(*x) * 1.001, "largest error 1.0e-03 of 5 values and gradients"),
        (lambda *x: swiglu(*x) + (0 * x[0].sum() / 0), "largest error nan"),
        (lambda *x: swiglu(*x)[1:], "ValueError: the shape is [69, 32] instead of [70, 32]"),
    ],
    ids=["scaled", "NaN", "a row less"],
)
def test_a_wrong_kernel_is_a_failure(monkeypatch: pytest.MonkeyPatch, wrong: Any, words: str) -> None:
    monkeypatch.setattr(cases, "swiglu", wrong)
    check = next(check for check in kernel_checks("cpu") if check.name == "swiglu, plain, float32")
    found = run_check(check)
    assert found.status == "failed"
    assert found.detail.startswith(words)


def test_gradients_without_rows_are_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        cases, "chunked_cross_entropy", lambda hidden, weight, labels, chunk: weight.sum() + hidden.sum()
    )
    found = check_no_rows("cross_entropy", "plain", "float32", SMALL)
    assert found.status == "failed"
    assert found.detail == "cross entropy: a result is not zero"


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda sequence: sequence.name)
def test_attention_of_packed_sequences(sequence: PackedSequence) -> None:
    """The same sequences, shorter: the comparison, with the form for CPUs in the place of the fused ones."""
    shorter = PackedSequence(
        sequence.name,
        4,
        2 if sequence.causal else 4,
        16,
        sequence.causal,
        [1 + length // 100 for length in sequence.lengths[:5]],
        [(1 + prompt // 100, 1 + one // 100, 1 + two // 100) for prompt, one, two in sequence.branches],
    )
    assert check_attention("cpu", shorter, "float32").status == "ok"


def test_wrong_attention_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Attention(attention.DocumentAttention):
        def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            calls.append(layer)
            return super().__call__(layer, query, key, value) * len(calls)

    monkeypatch.setattr(attention, "DocumentAttention", Attention)
    found = check_attention("cpu", PackedSequence("documents", 4, 2, 16, lengths=[20, 3]), "float32")
    assert found.status == "failed"
    assert found.detail.startswith("errors: output 1.0e+00, dq 1.0e+00")


def test_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timings, "_TOKENS", 20)
    monkeypatch.setattr(timings, "_REPEATS", 1)
    for run in (timings.time_experts, timings.time_attention):
        found = partial(run, SMALL, "float32")()
        assert found.status == "ok"
        assert " ms for 20 tokens (" in found.detail
    assert timings.measure(lambda: paddle.ones([1])) > 0
