"""The linear layers of a model that `model.quantize` covers."""

from __future__ import annotations

from erniekit.layers import Linear, QuantizedParameter
from erniekit.models.ernie import ErnieModel
from erniekit.moe.experts import StackedLinear


def quantize_layers(model: ErnieModel, bits: int) -> None:
    """Replace the weights of `is_quantized_tensor` by quantized ones, without their values. bits: 8 or 4.

    Raises ConfigError for a weight that cannot be stored in so many bits.
    """
    for layer in model.model.layers:
        for module in layer.sublayers():
            if isinstance(module, Linear | StackedLinear):
                quantized = QuantizedParameter(list(module.weight.shape), bits, module.weight.dtype)
                # Otherwise the module would refuse to replace a parameter with another kind of value.
                del module.weight
                module.weight = quantized
