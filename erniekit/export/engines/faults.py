"""Known faults of engines with ERNIE 4.5, found in an installation, and what to do about them."""

from __future__ import annotations

from erniekit.config.choices import Engine
from erniekit.export.check import Check
from erniekit.export.quantized import TRANSFORMERS_VL, Quantization
from erniekit.models.config import ErnieConfig

# By the name that the engine's script reports. Each was found in vLLM for CPUs 0.32.0, by trying it out.
_FAULTS = {
    "router": (
        "vLLM on this CPU ignores e_score_correction_bias when it chooses experts",
        "serve on GPUs, where vLLM applies the bias",
    ),
    "rotary": (
        "vLLM on this CPU cannot run the 3-D rotary embedding of ERNIE VL models (forward_native takes no offsets)",
        "serve on GPUs, which use another function",
    ),
}
# Head sizes of vLLM's attention on CPUs.
_CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def fault_notes(faults: tuple[str, ...], corrected: bool) -> list[Check]:
    """Lines about faults that an engine's script has found. corrected: whether it replaced the faulty functions."""
    compared = "compared with this function replaced" if corrected else "compared as it is"
    return [
        Check("note", f"{_FAULTS[name][0]}; {compared}. Workaround: {_FAULTS[name][1]}") for name in faults
    ]


def quantized_problem(engine: Engine, config: ErnieConfig, quantization: Quantization | None) -> str | None:
    """Why an engine on a CPU cannot load a quantized export; None if it can."""
    if quantization is None:
        return None
    if engine == "transformers":
        return TRANSFORMERS_VL if config.family == "vl" else None
    if engine != "vllm" or (quantization.bits == 4 and config.moe is None):
        return None
    what = "quantized experts" if config.moe is not None else "weights of 8 bits"
    other = "" if config.family == "vl" else ", or with --engine transformers"
    return f"vLLM on CPUs has no kernel for {what}: verify it on a GPU{other}"


def head_size_problem(config: ErnieConfig) -> str | None:
    """Why vLLM cannot serve the model on a CPU; None if it can."""
    if config.head_dim in _CPU_HEAD_SIZES:
        return None
    sizes = ", ".join(map(str, _CPU_HEAD_SIZES))
    return (
        f"vLLM on CPUs has no attention for heads of {config.head_dim} (it has {sizes}): verify it on a GPU"
    )
