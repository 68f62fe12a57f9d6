"""Kernels over random inputs, compared with the same computation in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from erniekit.kernels.cross_entropy import chunked_cross_entropy, chunked_log_probs
from erniekit.kernels.embedding import embedding, sort_by_id
from erniekit.kernels.grouped_gemm import ExpertRows
from erniekit.kernels.grouped_mlp import ExpertWeight, grouped_mlp
from erniekit.kernels.permute import permute, sort_by_expert, unpermute
from erniekit.kernels.quantize import GROUP_SIZES, QuantizedWeight, quantize, quantized_linear
from erniekit.kernels.rms_norm import add_rms_norm, rms_norm
from erniekit.kernels.rope import rotate_halves, rotate_pairs
from erniekit.kernels.swiglu import swiglu
from erniekit.models.attention import DocumentAttention

_EPS = 1e-5
_SCALING = 2.0

Function = Callable[..., Any]
"""Tensors -> a tensor or a tuple of tensors."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model. heads, kv_heads: of the decoder, with channels of `head_dim` each."""

    tokens: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    top_k: int
    inner: int
    rank: int
    vocab: int


SMALL = Sizes(
    tokens=70, hidden=64, heads=4, kv_heads=2, head_dim=16, experts=8, top_k=2, inner=32, rank=4, vocab=96
)
# ERNIE-4.5-VL-28B-A3B, with fewer rows of the embedding.
REAL = Sizes(
    tokens=2048,
    hidden=2560,
    heads=20,
    kv_heads=4,
    head_dim=128,
    experts=64,
    top_k=6,
    inner=512,
    rank=32,
    vocab=8192,
)


@dataclass(frozen=True)
class Case:
    """`run` calls a kernel, and `formula` composes the same in float64, over inputs with gradients.

    wide: inputs that are float32 in every computation.
    """

    name: str
    inputs: Sequence[np.ndarray]
    run: Function
    formula: Function
    wide: frozenset[int] = frozenset()

    def results(self, function: Function, dtype: str, computed: str) -> list[np.ndarray]:
        """Outputs and gradients, float64. dtype: that inputs are rounded to; computed: that they then have."""
        inputs = [
            tensor.astype("float64" if computed == "float64" else tensor.dtype)
            for tensor in self._inputs(dtype)
        ]
        outputs = _differentiate(function, inputs)
        gradients = [tensor.grad for tensor in inputs]
        return [value.astype("float64").numpy() for value in (*outputs, *gradients) if value is not None]

    def step(self, dtype: str) -> Callable[[], object]:
        """A forward and backward pass of the kernel, to be timed."""
        inputs = self._inputs(dtype)
        for tensor in inputs:
            tensor.stop_gradient = False
        upstream = paddle.ones_like(self.run(*inputs))
        return lambda: paddle.grad(self.run(*inputs), inputs, upstream)

    def _inputs(self, dtype: str) -> list[Tensor]:
        return [
            paddle.to_tensor(array).astype("float32" if number in self.wide else dtype)
            for number, array in enumerate(self.inputs)
        ]


def _differentiate(function: Function, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Calls a function, and computes the gradients of a weighted sum of its outputs."""
    for tensor in inputs:
        tensor.stop_gradient = False
    found = function(*inputs)
    outputs = found if isinstance(found, tuple) else (found,)
    total = paddle.zeros([], "float64")
    for number, output in enumerate(outputs):
        if not output.stop_gradient:
            # Exact in bfloat16.
            factors = _numbers(number).integers(-2, 3, output.shape).astype("float64")
            total = total + (output.astype("float64") * paddle.to_tensor(factors)).sum()
    total.backward()
    return outputs


def _numbers(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _random(*shape: int, seed: int, scale: float = 1.0) -> np.ndarray:
    values: np.ndarray = (_numbers(seed).standard_normal(shape) * scale).astype("float32")
    return values


def _norms(sizes: Sizes, tokens: int) -> Iterator[Case]:
    x, residual = (_random(tokens, sizes.hidden, seed=seed) for seed in (0, 1))
    weight = _random(sizes.hidden, seed=2)

    def formula(x: Tensor, weight: Tensor) -> Tensor:
        return x * paddle.rsqrt((x * x).mean(-1, keepdim=True) + _EPS) * weight

    yield Case("RMSNorm", [x, weight], lambda x, w: rms_norm(x, w, _EPS), formula)
    yield Case(
        "RMSNorm with a residual",
        [x, residual, weight],
        lambda x, r, w: add_rms_norm(x, r, w, _EPS),
        lambda x, r, w: (x + r, formula(x + r, w)),
    )


def _rotations(sizes: Sizes, tokens: int) -> Iterator[Case]:
    width = sizes.head_dim
    query, key = (_random(tokens, heads, width, seed=heads) for heads in (sizes.heads, sizes.kv_heads))
    angles = _numbers(3).uniform(0, 6.3, (tokens, width // 2))
    turn = np.stack([np.cos(angles), np.sin(angles)], -1).astype("float32")

    def pairs(x: Tensor) -> Tensor:
        cosine, sine = (paddle.to_tensor(turn[:, None, :, i]).astype("float64") for i in (0, 1))
        first, second = x[..., 0::2], x[..., 1::2]
        turned = [first * cosine - second * sine, second * cosine + first * sine]
        return paddle.stack(turned, -1).reshape(x.shape)

    def halves(x: Tensor) -> Tensor:
        cosine, sine = (paddle.to_tensor(turn[:, None, :, i]).astype("float64") for i in (0, 1))
        first, second = x[..., : width // 2], x[..., width // 2 :]
        return paddle.concat([first * cosine - second * sine, second * cosine + first * sine], -1)

    yield Case(
        "pairs",
        [query, key],
        lambda q, k: rotate_pairs(q, k, paddle.to_tensor(turn)),
        lambda q, k: (pairs(q), pairs(k)),
    )
    yield Case(
        "halves",
        [query],
        lambda x: rotate_halves(x, *(paddle.to_tensor(turn[:, None, :, i].copy()) for i in (0, 1))),
        halves,
    )


def _gates(sizes: Sizes, tokens: int) -> Iterator[Case]:
    gate, up = (_random(tokens, sizes.inner, seed=seed) for seed in (0, 1))
    joined = np.concatenate([gate, up], 1)

    def formula(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up

    yield Case("of halves", [joined], swiglu, lambda x: formula(*paddle.split(x, 2, -1)))
    yield Case("of two tensors", [gate, up], swiglu, formula)


def _permutations(sizes: Sizes, tokens: int) -> Iterator[Case]:
    width, top_k = sizes.hidden, sizes.top_k
    experts = _experts(sizes, tokens)
    flat = experts.reshape(-1)
    order = np.argsort(flat, kind="stable")
    slots = np.argsort(order).reshape(tokens, top_k)
    offsets = np.cumsum([0, *np.bincount(flat, minlength=sizes.experts)])

    def indices() -> tuple[Tensor, Tensor, Tensor]:
        return sort_by_expert(paddle.to_tensor(experts), sizes.experts)

    if tokens:
        yield Case(
            "sort", [], indices, lambda: tuple(paddle.to_tensor(array) for array in (order, slots, offsets))
        )
    x, y = _random(tokens, width, seed=0), _random(tokens * top_k, width, seed=1)
    weights = _numbers(2).uniform(0, 1, (tokens, top_k)).astype("float32")
    tokens_of_rows = paddle.to_tensor(order // top_k)
    yield Case(
        "permute",
        [x],
        lambda x: permute(x, *indices()[:2]),
        lambda x: paddle.gather(x, tokens_of_rows),
    )
    yield Case(
        "unpermute",
        [y, weights],
        lambda y, w: unpermute(y, *indices()[:2], w),
        lambda y, w: (
            paddle.gather(y, paddle.to_tensor(slots.reshape(-1))).reshape([tokens, top_k, width])
            * w.unsqueeze(-1)
        ).sum(1),
        frozenset({1}),
    )


def _experts(sizes: Sizes, tokens: int) -> np.ndarray:
    """[tokens, top_k] distinct experts for each token, unevenly distributed: the last expert gets no token."""
    chances = _numbers(5).uniform(0, 1, (tokens, sizes.experts)) * np.arange(sizes.experts, 0, -1)
    chances[:, -1] = -1
    return np.argsort(-chances, axis=1)[:, : sizes.top_k].astype(np.int64)


def _expert_mlps(sizes: Sizes, tokens: int) -> Iterator[Case]:
    yield expert_mlp_case(sizes, tokens)
    yield expert_mlp_case(sizes, tokens, adapted=True)


def expert_mlp_case(sizes: Sizes, tokens: int, *, adapted: bool = False) -> Case:
    """Rows of tokens, unevenly, through the MLPs of experts; adapted: with adapters on both matrices."""
    hidden, inner, experts, rank = sizes.hidden, sizes.inner, sizes.experts, sizes.rank
    counts = np.bincount(_experts(sizes, tokens).reshape(-1), minlength=experts)
    x = _random(int(counts.sum()), hidden, seed=0)
    gate_up = _random(experts, 2 * inner, hidden, seed=1, scale=hidden**-0.5)
    down = _random(experts, hidden, inner, seed=2, scale=inner**-0.5)
    adapters = [
        _random(experts, 2 * rank, hidden, seed=3, scale=hidden**-0.5),
        _random(experts, 2 * inner, rank, seed=4, scale=rank**-0.5),
        _random(experts, rank, inner, seed=5, scale=inner**-0.5),
        _random(experts, hidden, rank, seed=6, scale=rank**-0.5),
    ]

    def run(x: Tensor, gate_up: Tensor, down: Tensor, *lora: Tensor) -> Tensor:
        rows = ExpertRows.of(counts.tolist())
        if not lora:
            return grouped_mlp(x, ExpertWeight(gate_up), ExpertWeight(down), rows)
        first, second = (*lora[:2], _SCALING), (*lora[2:], _SCALING)
        return grouped_mlp(x, ExpertWeight(gate_up, *first), ExpertWeight(down, *second), rows)

    def formula(x: Tensor, gate_up: Tensor, down: Tensor, *lora: Tensor) -> Tensor:
        outputs, start = [], 0
        for expert, count in enumerate(counts.tolist()):
            one, two = gate_up[expert], down[expert]
            if lora:
                a, b = lora[0][expert], lora[1][expert]
                one = one + _SCALING * paddle.concat([b[:inner] @ a[:rank], b[inner:] @ a[rank:]])
                two = two + _SCALING * (lora[3][expert] @ lora[2][expert])
            if count:
                gate, up = paddle.split(x[start : start + count] @ one.T, 2, -1)
                outputs.append((F.silu(gate) * up) @ two.T)
                start += count
        return paddle.concat(outputs)

    inputs = [x, gate_up, down, *(adapters if adapted else [])]
    return Case(f"MLP of experts{' with adapters' if adapted else ''}", inputs, run, formula)


def _quantized(sizes: Sizes, tokens: int) -> Iterator[Case]:
    x = _random(tokens, sizes.hidden, seed=0)
    weight = paddle.to_tensor(_random(sizes.inner, sizes.hidden, seed=1, scale=sizes.hidden**-0.5))
    for bits in GROUP_SIZES:
        quantized = quantize(weight, bits)
        exact = _decoded(quantized)
        yield Case(
            f"linear layer in {bits} bits",
            [x],
            lambda x, w=quantized: quantized_linear(x, w),
            lambda x, w=exact: x @ paddle.to_tensor(w).T,
        )


def _decoded(quantized: QuantizedWeight) -> np.ndarray:
    """The weight in float64."""
    codes, scales = quantized.codes.numpy(), quantized.scales.astype("float64").numpy()
    if quantized.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], -1).reshape(quantized.shape).astype(np.int64) - 8
    values: np.ndarray = codes * scales.repeat(GROUP_SIZES[quantized.bits], -1)[..., : codes.shape[-1]]
    return values


def _losses(sizes: Sizes, tokens: int) -> Iterator[Case]:
    hidden = _random(tokens, sizes.hidden, seed=0)
    weight = _random(sizes.vocab, sizes.hidden, seed=1, scale=sizes.hidden**-0.5)
    labels = _numbers(2).integers(0, sizes.vocab, tokens)
    chunk = max(1, tokens // 3)

    def formula(hidden: Tensor, weight: Tensor) -> Tensor:
        chosen = F.one_hot(paddle.to_tensor(labels), sizes.vocab).astype("float64")
        return (F.log_softmax(hidden @ weight.T, -1) * chosen).sum(-1)

    yield Case(
        "cross entropy",
        [hidden, weight],
        lambda h, w: chunked_cross_entropy(h, w, paddle.to_tensor(labels), chunk),
        lambda h, w: -formula(h, w).sum(),
    )
    yield Case(
        "log-probabilities",
        [hidden, weight],
        lambda h, w: chunked_log_probs(h, w, paddle.to_tensor(labels), chunk),
        formula,
    )


def _embeddings(sizes: Sizes, tokens: int) -> Iterator[Case]:
    ids = _numbers(0).integers(0, sizes.vocab, tokens)
    # Half of the positions have the same token: its gradients are added.
    ids[::2] = 3
    weight = _random(sizes.vocab, sizes.hidden, seed=1)
    yield Case(
        "embedding",
        [weight],
        lambda w: embedding(paddle.to_tensor(ids), w, sort_by_id(ids, w)),
        lambda w: F.one_hot(paddle.to_tensor(ids), sizes.vocab).astype("float64") @ w,
    )


def _attentions(sizes: Sizes, tokens: int) -> Iterator[Case]:
    yield attention_case(
        "decoder", _documents(tokens), sizes.heads, sizes.kv_heads, sizes.head_dim, causal=True
    )
    yield attention_case("vision", _documents(tokens), sizes.heads, sizes.heads, sizes.head_dim, causal=False)


def attention_case(
    name: str, lengths: Sequence[int], heads: int, kv_heads: int, width: int, *, causal: bool
) -> Case:
    """Attention within documents of these lengths, packed into one row."""
    bounds = np.cumsum([0, *lengths]).astype(np.int32)
    tokens = int(bounds[-1])
    query = _random(tokens, heads, width, seed=0)
    key, value = (_random(tokens, kv_heads, width, seed=seed) for seed in (1, 2))

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return DocumentAttention(bounds, causal=causal, heads=heads)(0, q, k, v)

    def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outputs = []
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            rows = [x[start:stop].transpose([1, 0, 2]) for x in (q, k, v)]
            rows[1:] = [x.repeat_interleave(heads // kv_heads, axis=0) for x in rows[1:]]
            scores = rows[0] @ rows[1].transpose([0, 2, 1]) * width**-0.5
            if causal:
                scores = scores + paddle.triu(paddle.full_like(scores[0], -1e30), 1)
            outputs.append((F.softmax(scores, -1) @ rows[2]).transpose([1, 0, 2]))
        return paddle.concat(outputs)

    return Case(name, [query, key, value], run, formula)


def _documents(tokens: int) -> list[int]:
    """One long document, short ones, and one of a single token."""
    if not tokens:
        return [0]
    long, rest = tokens // 2, tokens - tokens // 2 - 1
    return [long, *[rest // 4] * 3, rest - 3 * (rest // 4), 1]


CASES: dict[str, Callable[[Sizes, int], Iterator[Case]]] = {
    "grouped_gemm": _expert_mlps,
    "dequantize": _quantized,
    "permute": _permutations,
    "rms_norm": _norms,
    "rope": _rotations,
    "swiglu": _gates,
    "cross_entropy": _losses,
    "attention": _attentions,
    "embedding": _embeddings,
}
"""The cases of each kernel, for a number of tokens. AdamW's are in `erniekit.doctor.step`."""
