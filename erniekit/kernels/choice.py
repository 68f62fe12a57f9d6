"""The form of every kernel: chosen once at the start of a process, and looked up by the kernels."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import paddle

from erniekit.errors import ConfigError
from erniekit.kernels.triton.runtime import enable_on_gpu, is_interpreted

FORMS: dict[str, tuple[str, ...]] = {
    "grouped_gemm": ("triton", "paddle", "plain"),
    "dequantize": ("triton", "plain"),
    "permute": ("triton", "plain", "cpu"),
    "rms_norm": ("triton", "paddle", "plain", "cpu"),
    "rope": ("triton", "plain", "cpu"),
    "swiglu": ("triton", "paddle", "plain"),
    "cross_entropy": ("triton", "plain", "cpu"),
    "attention": ("flashmask", "flash", "plain", "cpu"),
    "embedding": ("triton", "plain", "cpu"),
    "adamw": ("triton", "plain"),
}
"""The forms of each kernel, in the order of preference on a GPU.

triton: our Triton kernels. plain: composed of operators that every device has. cpu: only for CPUs, which prefer it.
Other names: kernels of Paddle that only GPUs have.
"""

FUSED_ATTENTION = ("flashmask", "flash")
"""Forms of attention for 16-bit types only; in float32 it is plain."""

# Paddle's own kernels then add in a fixed order: cuDNN's, flash attention's backward pass, the embedding gradient.
_DETERMINISTIC_FLAGS = {"FLAGS_cudnn_deterministic": True, "FLAGS_embedding_deterministic": 1}


def choose_forms(
    backend: str, device: str, *, attention: str = "auto", deterministic: bool = False
) -> dict[str, str]:
    """Choose the form of every kernel for this process; returns the form by kernel.

    backend: auto, triton, paddle or plain, as in `kernels.backend`. device: "cpu" or "gpu". attention: auto or a fused
    form, as in `kernels.attention`. deterministic: on a GPU, repeated runs give the same results bit for bit. Raises
    ConfigError for a form that cannot run here.
    """
    _check(backend, device)
    forms = {kernel: _choose(names, backend, device) for kernel, names in FORMS.items()}
    if attention != "auto":
        if device == "cpu":
            raise ConfigError(f"kernels.attention {attention} needs a GPU; use auto on a CPU")
        forms["attention"] = attention
    if device == "gpu" and deterministic:
        paddle.set_flags(_DETERMINISTIC_FLAGS)
    if "triton" in forms.values():
        if importlib.util.find_spec("triton") is None:
            raise ConfigError(
                "Triton is not installed, and its kernels are the default on a GPU: pip install 'erniekit[gpu]', "
                "or train with kernels.backend: paddle"
            )
        if device == "gpu":
            _enable_triton()
    _chosen.update(forms)
    return forms


def form_of(kernel: str) -> str:
    """The form of a kernel. Before `choose_forms` it is the form for CPUs."""
    return _chosen[kernel]


def describe_forms(dtype: str) -> str:
    """The line "kernels: grouped_gemm triton, ..." for the log. dtype: "float32" or "bfloat16", of the computation."""
    forms = dict(_chosen)
    if dtype == "float32" and forms["attention"] in FUSED_ATTENTION:
        forms["attention"] = "plain"
    return "kernels: " + ", ".join(f"{kernel} {form}" for kernel, form in forms.items())


@contextmanager
def use_forms(**forms: str) -> Iterator[None]:
    """Use other forms of some kernels inside a `with` block. For tests and tools; an unknown form is a ValueError."""
    for kernel, form in forms.items():
        if form not in FORMS.get(kernel, ()):
            raise ValueError(f"{kernel} has no form {form}")
    before = dict(_chosen)
    _chosen.update(forms)
    try:
        yield
    finally:
        _chosen.update(before)


def _check(backend: str, device: str) -> None:
    if device == "gpu" or backend in ("auto", "plain"):
        return
    if backend == "paddle":
        raise ConfigError("kernels.backend paddle needs a GPU; use auto or plain on a CPU")
    if not is_interpreted():
        raise ConfigError(
            "kernels.backend triton needs a GPU; use auto or plain on a CPU. To debug kernels on a CPU, "
            "set TRITON_INTERPRET=1 in the environment"
        )


def _enable_triton() -> None:
    try:
        enable_on_gpu()
    except RuntimeError as error:
        raise ConfigError(
            f"Triton cannot start: {error}. It needs a C compiler, such as gcc; or train with kernels.backend: paddle"
        ) from error


def _choose(names: tuple[str, ...], backend: str, device: str) -> str:
    if backend == "plain":
        return "plain"
    if device == "cpu":
        if backend == "triton" and "triton" in names:
            return "triton"
        return "cpu" if "cpu" in names else "plain"
    if backend == "triton" and "triton" in names:
        return "triton"
    return next(name for name in names if name != "triton" or backend != "paddle")


_chosen = {kernel: _choose(names, "auto", "cpu") for kernel, names in FORMS.items()}
