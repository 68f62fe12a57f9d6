"""Check and time the Triton kernels of the loss, the embedding gradient and AdamW on a GPU. Needs torch, not Paddle.

    python tools/gpu/kernels_head.py [--seed 0]

Every kernel is compared with float64 over random inputs. The table gives milliseconds (median, a cold cache), the bytes
that must be moved (each input read once, each output written once) per second, that as a share of a copy of 4 GiB, and
the time of torch's own kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import BF16, FP32, compare, copy_bandwidth, describe_versions, seed_inputs, time_run
from torch import Tensor

from erniekit.kernels.triton import adamw, cross_entropy, embedding

NAMES = {BF16: "bfloat16", FP32: "float32"}
VOCAB, HIDDEN = 103_424, 2560
BETAS, EPSILON, RATE, DECAY, STEP = (0.9, 0.95), 1e-8, 1e-3, 0.1, 3


def main() -> None:
    """Check all sizes, then print the table."""
    seed_inputs(__doc__)
    for dtype in (BF16, FP32):
        for rows, vocab in ((1, VOCAB), (700, VOCAB), (333, 97), (5, 100_003)):
            check_cross_entropy(rows, vocab, dtype)
        for tokens, width in ((1, 512), (2048, 1536), (8191, 3584), (32_768, 2560)):
            check_embedding(tokens, width, dtype)
    for dtype, gradient_dtype in ((FP32, FP32), (BF16, BF16), (BF16, FP32)):
        check_adamw(dtype, gradient_dtype)
    print("all kernels agree with float64, in bfloat16 and float32")
    print(describe_versions())
    copy = copy_bandwidth()
    print(f"a copy of 4 GiB: {copy:.2f} TB/s\n")
    print("| kernel | sizes | ms | TB/s | of the copy | torch, ms |\n|---|---|---|---|---|---|")
    for name, sizes, moved, run, composed in (*time_loss(), *time_embedding(), *time_adamw()):
        ms, other = time(run), time(composed)
        rate = moved / ms / 1e9
        print(f"| {name} | {sizes} | {ms:.3f} | {rate:.2f} | {rate / copy:.0%} | {other:.3f} |", flush=True)


Timed = tuple[str, str, int, Callable[[], object], Callable[[], object]]


def check_cross_entropy(rows: int, vocab: int, dtype: torch.dtype) -> None:
    """Loss, gradient, NaN, and the sum of weight gradients."""
    logits = (torch.randn(rows, vocab, device="cuda") * 4).to(dtype)
    labels = torch.randint(vocab, (rows,), device="cuda")
    logits[0, labels[0]] = -500
    losses, scale = torch.full((rows,), math.nan, device="cuda"), torch.rand(rows, device="cuda")
    wide = logits.double().requires_grad_()
    expected = F.cross_entropy(wide, labels, reduction="none")
    (expected * scale).sum().backward()
    kept = logits.clone()
    cross_entropy.cross_entropy(logits, labels, losses, scale, gradient=False)
    compare(f"loss of {rows} x {vocab}", losses, expected)
    assert torch.equal(kept, logits)
    cross_entropy.cross_entropy(logits, labels, losses, scale)
    compare(f"loss of {rows} x {vocab}", losses, expected)
    compare(f"gradient of {rows} x {vocab}", logits, wide.grad)
    kept[:, -1] = math.nan
    cross_entropy.cross_entropy(kept, labels, losses, gradient=False)
    assert losses.isnan().all()
    total = torch.randn(rows, vocab, device="cuda")
    expected = total.double() + logits.double()
    cross_entropy.accumulate(total, logits)
    compare(f"sum of {rows} x {vocab}", total, expected)


def check_embedding(tokens: int, width: int, dtype: torch.dtype) -> None:
    """Ids of which one is half of all tokens, twice with the same bits."""
    ids = token_ids(tokens)
    grad = torch.randn(tokens, width, device="cuda").to(dtype)
    expected = torch.zeros(VOCAB, width, device="cuda", dtype=torch.float64).index_add_(0, ids, grad.double())
    outputs = []
    for _ in range(2):
        outputs.append(torch.zeros(VOCAB, width, device="cuda", dtype=dtype))
        embedding.embedding_backward(grad, ids, *by_id(ids), outputs[-1])
    compare(f"embedding of {tokens} x {width}", outputs[0], expected)
    assert torch.equal(*outputs)


def check_adamw(dtype: torch.dtype, gradient_dtype: torch.dtype) -> None:
    """Norm, sums and step of many sizes, one of them without a gradient."""
    sizes = [1, 7, 16_384, 16_385, 1_000_003, 2560, *range(1000, 1100)]
    tensors = [parameter(size, dtype, gradient_dtype) for size in sizes]
    gradients = [gradient for *_, gradient in tensors]
    table, chunks = table_of(sizes, [[x.data_ptr() for x in gradients]])
    sums = torch.full((chunks,), math.nan, device="cuda")
    adamw.squared_norms(table, sums, NAMES[gradient_dtype])
    compare("norm", sums.sum(), torch.cat(gradients).double().square().sum())
    totals = [torch.randn(size, device="cuda") for size in sizes]
    filled = [index % 2 for index in range(len(sizes))]
    expected = [
        total.double() * f + g.double() for total, f, g in zip(totals, filled, gradients, strict=True)
    ]
    columns = [[x.data_ptr() for x in gradients], [x.data_ptr() for x in totals], filled]
    table, chunks = table_of(sizes, columns)
    adamw.accumulate(table, chunks, NAMES[gradient_dtype])
    compare("sum", torch.cat(totals), torch.cat(expected))
    expected = []
    for index, (_, value, moment1, moment2, gradient) in enumerate(tensors):
        g = gradient.double() * (0.5 if index != 1 else 0)
        first, second = (BETAS[0] * moment1 + (1 - BETAS[0]) * g), BETAS[1] * moment2 + (1 - BETAS[1]) * g * g
        corrected = (second / (1 - BETAS[1] ** STEP)).sqrt() + EPSILON
        step = first / (1 - BETAS[0] ** STEP) / corrected
        expected.append((value.double() * (1 - RATE * DECAY) - RATE * step, first, second))
    run_adamw(tensors, dtype, gradient_dtype, missing=1)()
    for index, (*_, _) in enumerate(tensors):
        written, value, moment1, moment2, _ = tensors[index]
        for number, found in enumerate((value, moment1, moment2)):
            compare(f"AdamW of {sizes[index]}", found, expected[index][number])
        assert torch.equal(written, value.to(dtype))


def time_loss() -> list[Timed]:
    """A chunk of logits."""
    rows = 1024
    logits = (torch.randn(rows, VOCAB, device="cuda") * 4).to(BF16)
    labels = torch.randint(VOCAB, (rows,), device="cuda")
    losses, scale = torch.empty(rows, device="cuda"), torch.full((rows,), 1e-4, device="cuda")
    leaf = logits.clone().requires_grad_()
    part = torch.randn(VOCAB, HIDDEN, device="cuda").to(BF16)
    total = torch.zeros(VOCAB, HIDDEN, device="cuda")
    sizes = f"{rows:,} x {VOCAB:,}"

    def composed() -> object:
        loss = F.cross_entropy(leaf.float(), labels, reduction="sum") * 1e-4
        return torch.autograd.grad(loss, leaf)

    return [
        (
            "cross entropy, loss and gradient",
            sizes,
            2 * logits.nbytes,
            lambda: cross_entropy.cross_entropy(logits, labels, losses, scale),
            composed,
        ),
        (
            "cross entropy, loss",
            sizes,
            logits.nbytes,
            lambda: cross_entropy.cross_entropy(logits, labels, losses, gradient=False),
            lambda: F.cross_entropy(leaf.detach().float(), labels, reduction="sum"),
        ),
        (
            "sum of head gradients",
            f"{VOCAB:,} x {HIDDEN:,}",
            part.nbytes + 2 * total.nbytes,
            lambda: cross_entropy.accumulate(total, part),
            lambda: total.add_(part),
        ),
    ]


def time_embedding() -> list[Timed]:
    """The gradient of 8,192 and 32,768 tokens, without the zeros of the output."""
    timed: list[Timed] = []
    for tokens in (8192, 32_768):
        ids = token_ids(tokens)
        grad = torch.randn(tokens, HIDDEN, device="cuda").to(BF16)
        out = torch.zeros(VOCAB, HIDDEN, device="cuda", dtype=BF16)
        order = by_id(ids)
        timed.append(
            (
                "embedding gradient",
                f"{tokens:,} x {HIDDEN:,}",
                grad.nbytes + len(ids.unique()) * HIDDEN * 2,
                lambda grad=grad, ids=ids, order=order, out=out: embedding.embedding_backward(
                    grad, ids, *order, out
                ),
                lambda grad=grad, ids=ids: torch.ops.aten.embedding_dense_backward(
                    grad, ids, VOCAB, -1, False
                ),
            )
        )
    return timed


def time_adamw() -> list[Timed]:
    """A billion parameters in 900 tensors: step, norm and sum."""
    sizes = [1_111_111] * 900
    tensors = [parameter(size, BF16, BF16) for size in sizes]
    gradients = [gradient for *_, gradient in tensors]
    table, chunks = table_of(sizes, [[x.data_ptr() for x in gradients]])
    sums = torch.empty(chunks, device="cuda")
    elements = sum(sizes)
    values = [value for _, value, *_ in tensors]
    wide = [gradient.float() for gradient in gradients]
    moments = [[moment1 for _, _, moment1, _, _ in tensors], [moment2 for _, _, _, moment2, _ in tensors]]
    steps = [torch.ones((), device="cuda") for _ in sizes]
    options = {"lr": RATE, "beta1": 0.9, "beta2": 0.95, "weight_decay": DECAY, "eps": EPSILON}

    def fused() -> None:
        torch._fused_adamw_(values, wide, *moments, [], steps, amsgrad=False, maximize=False, **options)
        torch._foreach_copy_([written for written, *_ in tensors], values)

    shape = f"{elements / 1e9:.1f}e9 in {len(sizes)} tensors"
    return [
        (
            "AdamW, bfloat16 with masters",
            shape,
            elements * (2 + 2 + 3 * 8),
            run_adamw(tensors, BF16, BF16),
            fused,
        ),
        (
            "norm of bfloat16 gradients",
            shape,
            elements * 2,
            lambda: adamw.squared_norms(table, sums, "bfloat16"),
            lambda: torch._foreach_norm(gradients, dtype=FP32),
        ),
    ]


def token_ids(tokens: int) -> Tensor:
    """Half of the tokens have one id, an eighth another, as placeholders and spaces do."""
    ids = torch.randint(VOCAB, (tokens,), device="cuda")
    ids[torch.rand(tokens, device="cuda") < 0.5] = 7
    ids[torch.rand(tokens, device="cuda") < 0.125] = 1234
    return ids


def by_id(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens sorted by id, and where each id begins, as `erniekit.kernels.embedding.sort_by_id` finds them."""
    order = ids.argsort(stable=True)
    counts = ids.unique(return_counts=True)[1]
    return order.int(), F.pad(counts.cumsum(0), (1, 0)).int()


def parameter(size: int, dtype: torch.dtype, gradient_dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Parameter, float32 values, moments and gradient."""
    written = torch.randn(size, device="cuda").to(dtype)
    value = written if dtype == FP32 else written.float()
    moments = torch.randn(size, device="cuda") * 0.1, torch.rand(size, device="cuda") * 0.1
    return written, value, *moments, torch.randn(size, device="cuda").to(gradient_dtype)


def run_adamw(
    tensors: list[tuple[Tensor, ...]], dtype: torch.dtype, gradient_dtype: torch.dtype, missing: int = -1
) -> Callable[[], None]:
    """A step over all tensors, with gradients scaled by 0.5 and none for the tensor `missing`."""
    sizes = [tensor[0].numel() for tensor in tensors]
    addresses = [[tensor[index].data_ptr() for tensor in tensors] for index in (4, 1, 2, 3, 0)]
    if missing >= 0:
        addresses[0][missing] = 0
    table, chunks = table_of(sizes, addresses)
    groups = torch.tensor([[1.0, DECAY]] * len(sizes), device="cuda")
    corrections = 1 - BETAS[0] ** STEP, 1 - BETAS[1] ** STEP
    return lambda: adamw.adamw(
        table,
        groups,
        chunks,
        (NAMES[dtype], NAMES[gradient_dtype]),
        rate=RATE,
        betas=BETAS,
        corrections=corrections,
        epsilon=EPSILON,
        scale=0.5,
    )


def table_of(sizes: list[int], columns: list[list[int]]) -> tuple[Tensor, int]:
    """The table that the launch functions take, and the number of chunks."""
    chunks = [-(-size // adamw.CHUNK) for size in sizes]
    firsts = [sum(chunks[:index]) for index in range(len(sizes))]
    return torch.tensor([sizes, firsts, *columns], device="cuda").T.contiguous(), sum(chunks)


def time(run: Callable[[], object]) -> float:
    """Median milliseconds."""
    return time_run(run, warmup=50, rep=200)


if __name__ == "__main__":
    main()
