"""A part of the Paddle API on torch tensors. `install` puts it in the place of the module `paddle`."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from . import attention, autograd, device, distributed, functional, layers, operators
from .absent import leave_out
from .tensor import Tensor


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the adapter of Paddle has no {self.__name__}.{name}")


def install(*, pretend_gpu: bool = False) -> None:
    """Make `import paddle` give this adapter. Before anything imports Paddle or erniekit.

    pretend_gpu: the CPU passes for a GPU, to try what is written for one.
    """
    if "paddle" in sys.modules:
        raise RuntimeError("Paddle is imported already")
    if pretend_gpu:
        device.pretend_gpu()
    flash = _add("paddle.nn.functional.flash_attention", flash_attn_unpadded=attention.flash_attn_unpadded)
    nn_functional = _add(
        "paddle.nn.functional",
        **_named(functional.OFFERED),
        flashmask_attention=attention.flashmask_attention,
        flash_attention=flash,
    )
    initializer = _add("paddle.nn.initializer", Constant=layers.Constant)
    nn = _add(
        "paddle.nn",
        functional=nn_functional,
        initializer=initializer,
        Layer=layers.Layer,
        LayerList=layers.LayerList,
        LayerDict=layers.LayerDict,
    )
    core = _add(
        "paddle.base.core",
        set_num_threads=torch.set_num_threads,
        set_cublas_switch=device.set_cublas_switch,
        _get_current_stream=device.get_current_stream,
    )
    steps = _add("paddle.autograd", PyLayer=autograd.PyLayer, backward=autograd.backward)
    dlpack = _add("paddle.utils.dlpack", from_dlpack=operators.from_dlpack)
    for parent in ("paddle.incubate", "paddle.incubate.nn", "paddle.incubate.nn.functional"):
        _add(parent)
    _add("paddle.incubate.nn.functional.batched_gemm", batched_gemm=functional.batched_gemm)
    stream = _add("paddle.distributed.stream", **_named(distributed.STREAM))
    collectives = _add(
        "paddle.distributed",
        **_named(distributed.OFFERED),
        stream=stream,
        ReduceOp=distributed.ReduceOp,
    )
    cuda = _add("paddle.device.cuda", device_count=device.device_count)
    _add(
        "paddle",
        **_named(operators.OFFERED),
        **{name: dtype for name, dtype in device.DTYPES.items() if name != "bool"},
        Tensor=Tensor,
        dtype=torch.dtype,
        nn=nn,
        autograd=steps,
        distributed=collectives,
        _C_ops=_add("paddle._C_ops", **_named(functional.KERNELS)),
        base=_add("paddle.base", core=core),
        utils=_add("paddle.utils", dlpack=dlpack),
        device=_add("paddle.device", cuda=cuda, **_named(device.STREAMS)),
        no_grad=torch.no_grad,
        enable_grad=torch.enable_grad,
        is_grad_enabled=torch.is_grad_enabled,
        CPUPlace=device.cpu_place,
        CUDAPinnedPlace=device.pinned_place,
        enable_compat=device.enable_compat,
        **_named(
            (
                *(device.set_device, device.get_device, device.is_compiled_with_cuda, device.set_flags),
                *(device.seed, device.get_rng_state, device.set_rng_state),
            )
        ),
    )
    leave_out()


def _named(functions: tuple[Any, ...]) -> dict[str, Any]:
    return {function.__name__: function for function in functions}


def _add(name: str, **attributes: Any) -> ModuleType:
    module = _Module(name)
    # Other libraries ask whether Paddle is installed.
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    module.__dict__.update(attributes)
    sys.modules[name] = module
    return module
