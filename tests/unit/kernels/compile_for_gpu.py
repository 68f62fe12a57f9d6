"""Compile the Triton kernels, as they are launched for bfloat16 tensors of Paddle, for an H100, without a GPU.

    python tests/unit/kernels/compile_for_gpu.py

Prints the name of each kernel. Needs a process without Triton's interpreter.
"""

from __future__ import annotations

import paddle
import triton.runtime
from paddle import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from erniekit.kernels.adamw import AdamWParameter, adamw, squared_norm
from erniekit.kernels.choice import FORMS, use_forms
from erniekit.kernels.embedding import embedding, sort_by_id
from erniekit.kernels.grouped_gemm import ExpertRows
from erniekit.kernels.grouped_mlp import ExpertWeight, grouped_mlp
from erniekit.kernels.permute import permute, sort_by_expert, unpermute
from erniekit.kernels.quantize import QuantizedWeight, dequantize, quantized_shapes
from erniekit.kernels.rms_norm import add_rms_norm, rms_norm
from erniekit.kernels.rope import rotate_halves, rotate_pairs
from erniekit.kernels.swiglu import swiglu
from erniekit.kernels.triton.cross_entropy import accumulate, cross_entropy

TOKENS, WIDTH, VOCAB, TOP_K, EXPERTS = 16, 2560, 1024, 6, 64


class Hopper:
    """A driver of one device that nothing is launched on."""

    @property
    def utils(self) -> Hopper:
        return self

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"multiprocessor_count": 132, "max_shared_mem": 232_448}

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def main() -> None:
    """Compile everything."""
    launch = JITFunction.run
    names = []

    def compile_only(self: JITFunction, *args: object, **kwargs: object) -> object:
        names.append(self.fn.__name__)
        return launch(self, *args, **(kwargs | {"warmup": True}))

    JITFunction.run = compile_only
    triton.runtime.driver.set_active(Hopper())
    with use_forms(**{kernel: "triton" for kernel, forms in FORMS.items() if "triton" in forms}):
        norms_rotation_and_swiglu()
        permutation()
        embedding_and_loss()
        optimizer()
        grouped_kernels()
        quantized_weights()
    print("\n".join(dict.fromkeys(names)))


def norms_rotation_and_swiglu() -> None:
    x, residual, weight = tensor(TOKENS, WIDTH), tensor(TOKENS, WIDTH), tensor(WIDTH)
    backward(rms_norm(x, weight, 1e-5))
    backward(rms_norm(x, weight.detach(), 1e-5))
    backward(*add_rms_norm(x, residual, weight, 1e-5))
    pairs, angles = paddle.zeros([TOKENS, 64, 2]), paddle.zeros([TOKENS, 1, 40])
    backward(*rotate_pairs(tensor(TOKENS, 20, 128), tensor(TOKENS, 4, 128), pairs))
    backward(rotate_halves(tensor(TOKENS, 16, 80), angles, angles))
    backward(swiglu(tensor(TOKENS, 3072)))
    backward(swiglu(tensor(TOKENS, 512), tensor(TOKENS, 512)))


def permutation() -> None:
    order, slots, _ = sort_by_expert(paddle.zeros([TOKENS, TOP_K], "int64"), EXPERTS)
    backward(permute(tensor(TOKENS, WIDTH), order, slots))
    weights = paddle.zeros([TOKENS, TOP_K])
    weights.stop_gradient = False
    backward(unpermute(tensor(TOKENS * TOP_K, WIDTH), order, slots, weights))


def embedding_and_loss() -> None:
    ids, losses = paddle.zeros([TOKENS], "int64"), paddle.zeros([TOKENS])
    weight = tensor(VOCAB, WIDTH)
    backward(embedding(ids, weight, sort_by_id(ids.numpy(), weight)))
    # CPUs have no products in bfloat16, which the loss begins with.
    logits = tensor(TOKENS, VOCAB)
    for scale in (None, losses):
        for gradient in (True, False):
            cross_entropy(logits, ids, losses, scale, gradient=gradient)
    accumulate(paddle.zeros([VOCAB, WIDTH]), tensor(VOCAB, WIDTH))


def optimizer() -> None:
    weight, gradient, state = tensor(WIDTH), tensor(WIDTH), [paddle.zeros([WIDTH]) for _ in range(3)]
    squared_norm([gradient])
    entry = AdamWParameter(weight, 1.0, 0.1, *state)
    adamw([(entry, gradient)], 1e-4, 1, betas=(0.9, 0.95), epsilon=1e-8)


def grouped_kernels() -> None:
    """Grouped products of trained experts with adapters."""
    rows = ExpertRows(paddle.zeros([EXPERTS + 1], "int32"), TOKENS)
    width, rank = 512, 32
    gate_up = (
        tensor(EXPERTS, 2 * width, WIDTH),
        tensor(EXPERTS, 2 * rank, WIDTH),
        tensor(EXPERTS, 2 * width, rank),
    )
    down = tensor(EXPERTS, WIDTH, width), tensor(EXPERTS, rank, width), tensor(EXPERTS, WIDTH, rank)
    backward(grouped_mlp(tensor(TOKENS, WIDTH), ExpertWeight(*gate_up), ExpertWeight(*down), rows))


def quantized_weights() -> None:
    for bits, dtype in ((8, "int8"), (4, "uint8")):
        codes, scales = quantized_shapes([WIDTH, WIDTH], bits)
        weight = QuantizedWeight(paddle.zeros(codes).astype(dtype), paddle.zeros(scales).astype("bfloat16"))
        dequantize(weight, "bfloat16")


def tensor(*shape: int) -> Tensor:
    """Zeros that are trained."""
    zeros = paddle.zeros(shape).astype("bfloat16")
    zeros.stop_gradient = False
    return zeros


def backward(*outputs: Tensor) -> None:
    """The backward pass, which is not computed either."""
    paddle.autograd.backward(list(outputs), [output.detach() for output in outputs])


if __name__ == "__main__":
    main()
