"""Gradients of a step on one process, by layer."""

from __future__ import annotations

import numpy as np
import paddle

from erniekit.optim.adamw import AdamW
from erniekit.parallel.data_parallel import collect_by_layer


def test_gradients_of_a_layer_are_summed_when_its_backward_pass_is_done() -> None:
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"]
    weights = [paddle.zeros([3], "bfloat16") for _ in names]
    for weight in weights:
        weight.stop_gradient = False
    optimizer = AdamW(list(zip(names, weights, strict=True)))
    hooks = collect_by_layer(optimizer, names)
    # 256 + 1 is 256 in bfloat16, whose sums of these rows would forget every 1.
    for value in (256.0, 1.0, 1.0):
        for weight in weights:
            (weight * paddle.to_tensor(value, dtype="bfloat16")).sum().backward()
        hooks.done(1)
        assert [weight.grad is None for weight in weights] == [False, True, False]
        hooks.done(0)
        assert [weight.grad is None for weight in weights] == [True, True, False]
        optimizer.collect_gradients()
    for _, gradient in optimizer.named_gradients():
        np.testing.assert_array_equal(gradient.numpy(), [258.0] * 3)
