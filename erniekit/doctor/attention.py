"""Compares Paddle's fused attention at real shapes with the plain form in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import paddle

from erniekit.doctor.cases import Case
from erniekit.doctor.check import Check, Result, failed, ok
from erniekit.doctor.kernels import TOLERANCE, relative_error
from erniekit.kernels.choice import FUSED_ATTENTION, use_forms
from erniekit.models.attention import Attend, DocumentAttention
from erniekit.models.branches import BranchAttention


@dataclass(frozen=True)
class PackedSequence:
    """Documents of these lengths; branches: of each document, the lengths of its prompt and of its two answers."""

    name: str
    heads: int
    kv_heads: int
    width: int
    causal: bool = True
    lengths: Sequence[int] = ()
    branches: Sequence[tuple[int, int, int]] = ()

    def attend(self) -> Attend:
        """The attention of the model for this sequence."""
        bounds = np.cumsum([0, *(self.lengths or map(sum, self.branches))]).astype(np.int32)
        if not self.branches:
            return DocumentAttention(bounds, causal=self.causal, heads=self.heads)
        places = np.cumsum(np.asarray(self.branches), 1)[:, :2] + bounds[:-1, None]
        return BranchAttention(bounds, places.astype(np.int32), self.heads)

    def case(self) -> Case:
        """Random queries, keys and values, and the attention of both sides of the comparison."""
        tokens, numbers = sum(self.lengths or map(sum, self.branches)), np.random.default_rng(0)
        inputs = [
            numbers.standard_normal((tokens, heads, self.width)).astype("float32")
            for heads in (self.heads, self.kv_heads, self.kv_heads)
        ]

        def run(*inputs: paddle.Tensor) -> paddle.Tensor:
            return self.attend()(0, *inputs)

        return Case(self.name, inputs, run, run)


# The heads of VL-28B-A3B: of its decoder, and of its vision tower.
SEQUENCES = (
    PackedSequence("one document", 20, 4, 128, lengths=[8192]),
    # Flash attention's backward pass has an accumulator for each document, as long as the longest.
    PackedSequence("a long document and 120 short ones", 20, 4, 128, lengths=[6000, *[18] * 120]),
    PackedSequence(
        "pairs that share a prompt", 20, 4, 128, branches=[(1500, 400, 300), (2500, 900, 1200), (7, 1, 1)]
    ),
    PackedSequence("images", 16, 16, 80, causal=False, lengths=[4096, 1024, 1024, 16, 4]),
)


def attention_checks() -> list[Check]:
    """A check for each fused form and packed sequence. Needs a GPU."""
    return [
        Check("attention", f"{form}, {sequence.name}", partial(check_attention, form, sequence))
        for form in FUSED_ATTENTION
        for sequence in SEQUENCES
    ]


def check_attention(form: str, sequence: PackedSequence, dtype: str = "bfloat16") -> Result:
    """Compares values and gradients of a form in a dtype with the plain form in float32 on the same inputs."""
    case = sequence.case()
    rounded = [paddle.to_tensor(array).astype(dtype).astype("float32").numpy() for array in case.inputs]
    with use_forms(attention="plain"):
        expected = Case(case.name, rounded, case.run, case.run).results(case.run, "float32", "float32")
    on_gpu = paddle.get_device() != "cpu"
    if on_gpu:
        paddle.device.cuda.reset_max_memory_allocated()
    with use_forms(attention=form):
        found = case.results(case.run, dtype, dtype)
    errors = [relative_error(one, other) for one, other in zip(found, expected, strict=True)]
    figures = ", ".join(
        f"{name} {error:.1e}" for name, error in zip(("output", "dq", "dk", "dv"), errors, strict=True)
    )
    if not max(errors) <= TOLERANCE[dtype]:
        return failed(
            f"errors: {figures}; allowed {TOLERANCE[dtype]:.0e}. kernels.attention chooses another form"
        )
    memory = f"; peak {paddle.device.cuda.max_memory_allocated() / 2**30:.1f} GiB" if on_gpu else ""
    return ok(f"errors: {figures}{memory}")
