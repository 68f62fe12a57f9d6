"""Tokens for which rounding decides between two experts: implementations may differ from there on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paddle

from erniekit.models.ernie import ErnieModel
from erniekit.moe.layer import MoeLayer
from erniekit.moe.router import selection_margins

# In float32, implementations differ by some 1e-6 of a probability.
_TIE = 1e-5


class FirstTie:
    """position: of the first token, in any layer, for which two experts are equally probable; None: of no token."""

    def __init__(self) -> None:
        self.position: int | None = None

    def note(self, layer: MoeLayer, inputs: tuple[Any, ...]) -> None:
        """Before the forward pass of a layer."""
        x, index = inputs[:2]
        bias = layer.moe_statics.e_score_correction_bias
        margins = selection_margins(x, index, layer.gate, bias, layer.moe).numpy()
        ties = (margins < _TIE).nonzero()[0]
        if len(ties) and (self.position is None or ties[0] < self.position):
            self.position = int(ties[0])


@contextmanager
def noting_ties(model: ErnieModel) -> Iterator[FirstTie]:
    """Inside, note where experts tie in forward passes over one document."""
    found = FirstTie()
    layers = [layer for layer in model.sublayers() if isinstance(layer, MoeLayer)]
    hooks = [layer.register_forward_pre_hook(found.note) for layer in layers]
    try:
        with paddle.no_grad():
            yield found
    finally:
        for hook in hooks:
            hook.remove()
