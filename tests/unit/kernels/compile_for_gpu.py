"""Compile the Triton kernels that the PyLayers launch for bfloat16 tensors of Paddle, for an H100, without a GPU.

    python tests/unit/kernels/compile_for_gpu.py

Prints the name of each kernel. Needs a process without Triton's interpreter.
"""

from __future__ import annotations

import paddle
import triton.runtime
from paddle import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from erniekit.kernels.choice import use_forms
from erniekit.kernels.permute import permute, sort_by_expert, unpermute
from erniekit.kernels.rms_norm import add_rms_norm, rms_norm
from erniekit.kernels.rope import rotate_halves, rotate_pairs
from erniekit.kernels.swiglu import swiglu

TOKENS, WIDTH, TOP_K, EXPERTS = 16, 2560, 6, 64


class Hopper:
    """A driver of one device that nothing is launched on."""

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
    with use_forms(rms_norm="triton", rope="triton", swiglu="triton", permute="triton"):
        pointwise_kernels()
    print("\n".join(dict.fromkeys(names)))


def pointwise_kernels() -> None:
    """Norms, rotation, SwiGLU and permutation."""
    x, residual, weight = tensor(TOKENS, WIDTH), tensor(TOKENS, WIDTH), tensor(WIDTH)
    backward(rms_norm(x, weight, 1e-5))
    backward(rms_norm(x, weight.detach(), 1e-5))
    backward(*add_rms_norm(x, residual, weight, 1e-5))
    angles = paddle.zeros([TOKENS, 64, 2])
    backward(*rotate_pairs(tensor(TOKENS, 20, 128), tensor(TOKENS, 4, 128), angles))
    backward(
        rotate_halves(tensor(TOKENS, 16, 80), paddle.zeros([TOKENS, 1, 40]), paddle.zeros([TOKENS, 1, 40]))
    )
    backward(swiglu(tensor(TOKENS, 3072)))
    backward(swiglu(tensor(TOKENS, 512), tensor(TOKENS, 512)))
    order, slots, _ = sort_by_expert(paddle.zeros([TOKENS, TOP_K], "int64"), EXPERTS)
    backward(permute(x, order, slots))
    weights = paddle.zeros([TOKENS, TOP_K])
    weights.stop_gradient = False
    backward(unpermute(tensor(TOKENS * TOP_K, WIDTH), order, slots, weights))


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
