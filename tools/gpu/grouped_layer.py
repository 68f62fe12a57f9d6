"""The routed experts of a layer over random inputs: tensors, launches of forward and backward, and torch's products."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import Run
from torch import Tensor

from erniekit.kernels.triton.grouped_gemm import grouped_gemm, grouped_gemm_dw, grouped_gemm_dx
from erniekit.kernels.triton.grouped_swiglu import grouped_down_dx, grouped_gate_up

HIDDEN, EXPERTS, TOP_K, RANK = 2560, 64, 6, 32
SCALING = 2.0


class Layer:
    """Tensors of the routed experts of a layer.

    t: random tensors, by name: rows of tokens sorted by expert (x, h, a, dy, dh), weights (w for gate and up, down),
    adapters (a1, b1, a2, b2), and rows of low rank (u, v). out: the tensors that kernels write, with the same names.
    """

    def __init__(
        self, tokens: int, width: int, spread: str, rank: int, dtype: torch.dtype, hidden: int = HIDDEN
    ) -> None:
        self.tokens, self.width, self.hidden, self.rank, self.spread = tokens, width, hidden, rank, spread
        self.dtype = dtype
        rows = tokens * TOP_K
        counts = count_rows(rows, spread)
        self.offsets = F.pad(counts.cumsum(0), (1, 0)).int().cuda()
        self.bounds = self.offsets.tolist()
        shapes = {
            "x": (rows, hidden),
            "w": (EXPERTS, 2 * width, hidden),
            "a1": (EXPERTS, 2 * rank, hidden),
            "b1": (EXPERTS, 2 * width, rank),
            "h": (rows, 2 * width),
            "a": (rows, width),
            "down": (EXPERTS, hidden, width),
            "a2": (EXPERTS, rank, width),
            "b2": (EXPERTS, hidden, rank),
            "dy": (rows, hidden),
            "dh": (rows, 2 * width),
            "u1": (rows, 2 * rank),
            "v1": (rows, 2 * rank),
            "u2": (rows, rank),
            "v2": (rows, rank),
        }
        self.t = {
            name: torch.randn(*shape, device="cuda", dtype=dtype) * shape[-1] ** -0.5
            for name, shape in shapes.items()
        }
        self.out = {name: torch.empty_like(tensor) for name, tensor in self.t.items() if name != "dy"}
        self.out |= {"y": torch.empty_like(self.t["dy"])}

    def flops(self, products: float) -> float:
        """The FLOPs of a number of products with gate_up and down."""
        return products * 2 * self.tokens * TOP_K * self.hidden * self.width * 3

    def mlps(self) -> dict[str, list[Run]]:
        """The launches of forward and backward, as erniekit/kernels/grouped_mlp.py has them."""
        t, out, off = self.t, self.out, self.offsets

        def gemm(
            x: Tensor, w: Tensor, y: Tensor, low: tuple[Tensor, Tensor] | None = None, s: float = 1.0
        ) -> Run:
            return lambda: grouped_gemm(x, w, off, y, low, scale=s)

        def dx(
            dy: Tensor, w: Tensor, y: Tensor, low: tuple[Tensor, Tensor] | None = None, s: float = 1.0
        ) -> Run:
            return lambda: grouped_gemm_dx(dy, w, off, y, low, scale=s)

        def dw(dy: Tensor, x: Tensor, y: Tensor) -> Run:
            return lambda: grouped_gemm_dw(dy, x, off, y)

        forward = [
            lambda: grouped_gate_up(t["x"], t["w"], off, out["h"], out["a"]),
            gemm(out["a"], t["down"], out["y"]),
        ]
        backward = [
            lambda: grouped_down_dx(t["dy"], t["down"], out["h"], off, out["dh"], out["a"]),
            dx(out["dh"], t["w"], out["x"]),
        ]
        weights = [dw(t["dy"], out["a"], out["down"]), dw(out["dh"], t["x"], out["w"])]
        low1, low2 = (out["u1"], t["b1"]), (out["u2"], t["b2"])
        grad1, grad2 = (out["v1"], t["a1"]), (out["v2"], t["a2"])
        adapted = [
            gemm(t["x"], t["a1"], out["u1"], s=SCALING),
            lambda: grouped_gate_up(t["x"], t["w"], off, out["h"], out["a"], low1),
            gemm(out["a"], t["a2"], out["u2"], s=SCALING),
            gemm(out["a"], t["down"], out["y"], low2),
            dx(t["dy"], t["b2"], out["v2"], s=SCALING),
            lambda: grouped_down_dx(t["dy"], t["down"], out["h"], off, out["dh"], out["a"], grad2),
            dx(out["dh"], t["b1"], out["v1"], s=SCALING),
            dx(out["dh"], t["w"], out["x"], grad1),
            dw(t["dy"], out["u2"], out["b2"]),
            dw(out["v2"], out["a"], out["a2"]),
            dw(out["dh"], out["u1"], out["b1"]),
            dw(out["v1"], t["x"], out["a1"]),
        ]
        return {
            "trained": forward + backward + weights,
            "frozen": forward + backward,
            "frozen, adapters": adapted,
        }

    def composed(self, name: str) -> list[Run]:
        """Forward and backward with torch's grouped_mm, and with one dense matrix and no adapters. name: of `mlps`."""
        t, ends = self.t, self.offsets[1:]
        names = ("w", "down") if name == "trained" else ()
        names = ("a1", "b1", "a2", "b2") if name == "frozen, adapters" else names
        x = t["x"].detach().requires_grad_()
        p = {
            key: t[key].detach().requires_grad_(key in names) for key in ("w", "down", "a1", "b1", "a2", "b2")
        }
        leaves = [x, *(p[key] for key in names)]

        def product(x: Tensor, w: Tensor) -> Tensor:
            return F.grouped_mm(x, w.transpose(1, 2), offs=ends)

        def grouped() -> object:
            h = product(x, p["w"])
            if "a1" in names:
                low = [part.contiguous() for part in (product(x, p["a1"]) * SCALING).chunk(2, -1)]
                halves = [half.contiguous() for half in p["b1"].chunk(2, 1)]
                h = h + torch.cat([product(*pair) for pair in zip(low, halves, strict=True)], -1)
            gate, up = h.chunk(2, -1)
            a = F.silu(gate) * up
            y = product(a, p["down"])
            if "a1" in names:
                y = y + product(product(a, p["a2"]) * SCALING, p["b2"])
            return torch.autograd.grad(y, leaves, t["dy"])

        def dense() -> object:
            w, down = (t[key][0].detach().requires_grad_(name == "trained") for key in ("w", "down"))
            gate, up = F.linear(x, w).chunk(2, -1)
            y = F.linear(F.silu(gate) * up, down)
            return torch.autograd.grad(y, [x, w, down] if name == "trained" else x, t["dy"])

        return [grouped, dense]

    def by_expert(self, formula: Callable[..., object], inputs: list[str]) -> list[Tensor]:
        """Results of the formula over the rows and matrices of each expert, in float64."""
        results = []
        for expert in range(EXPERTS):
            rows = slice(self.bounds[expert], self.bounds[expert + 1])
            tensors = [self.t[key] for key in inputs]
            found = formula(*((x[expert] if x.dim() == 3 else x[rows]).double() for x in tensors))
            results.append(found if isinstance(found, tuple) else (found,))
        return [torch.cat(column) for column in zip(*results, strict=True)]


def count_rows(rows: int, spread: str) -> Tensor:
    """The number of rows of each expert. uneven: from a Dirichlet distribution, similar to trained routers."""
    shares = torch.ones(EXPERTS, dtype=torch.float64)
    if spread == "uneven":
        shares = torch.distributions.Dirichlet(torch.full((EXPERTS,), 2.0)).sample().double()
    elif spread == "skewed":
        shares[7] = EXPERTS
    elif spread == "half empty":
        shares[::2] = 0
    elif spread == "one expert":
        shares *= 0
        shares[3] = 1
    return torch.multinomial(shares, rows, replacement=True).bincount(minlength=EXPERTS)
