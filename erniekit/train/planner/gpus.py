"""GPUs: memory, and the peaks of their data sheets.

Bandwidth and links scale what was measured on one kind, the H200 (`erniekit.train.planner.roofline`).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from erniekit.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    words: in the driver's name of the device, all of them. memory: bytes, as the driver reports them to a process,
    which is less than the maker's gigabytes where error correction or the driver takes a part. tflops: dense bfloat16
    products with float32 accumulation; bandwidth: of the memory, TB/s; link: to other GPUs of the machine, GB/s in one
    direction, by NVLink or else PCIe. The last three are from the maker's data sheet.
    """

    name: str
    words: str
    memory: int
    tflops: float
    bandwidth: float
    link: float


def _gpu(name: str, words: str, gib: float, tflops: float, bandwidth: float, link: float) -> Gpu:
    return Gpu(name, words, round(gib * GIB), tflops, bandwidth, link)


# The first entry with all of its words in the name of a device applies.
GPUS = (
    _gpu("b200-180gb", "B200", 178.3, 2250.0, 8.0, 900.0),
    _gpu("h100-pcie-80gb", "H100 PCIE", 79.1, 756.0, 2.0, 64.0),
    _gpu("h100-nvl-94gb", "H100 NVL", 93.1, 835.0, 3.9, 64.0),
    _gpu("h100-80gb", "H100", 79.1, 989.0, 3.35, 450.0),
    _gpu("h200-nvl-141gb", "H200 NVL", 139.8, 835.0, 4.8, 64.0),
    _gpu("h200-141gb", "H200", 139.8, 989.0, 4.8, 450.0),
    _gpu("gh200-96gb", "GH200", 94.5, 989.0, 4.0, 450.0),
    _gpu("h800-pcie-80gb", "H800 PCIE", 79.1, 756.0, 2.0, 64.0),
    _gpu("h800-80gb", "H800", 79.1, 989.0, 3.35, 200.0),
    _gpu("h20-96gb", "H20", 95.1, 148.0, 4.0, 450.0),
    _gpu("a100-40gb", "A100 40GB", 39.4, 312.0, 1.555, 300.0),
    _gpu("a100-80gb", "A100", 79.1, 312.0, 2.039, 300.0),
    _gpu("a800-80gb", "A800", 79.1, 312.0, 2.039, 200.0),
    _gpu("a40-48gb", "A40", 44.4, 150.0, 0.696, 32.0),
    _gpu("a10-24gb", "A10", 22.0, 125.0, 0.6, 32.0),
    _gpu("l40s-48gb", "L40S", 44.4, 362.0, 0.864, 32.0),
    _gpu("rtx3090-24gb", "RTX 3090", 23.5, 71.0, 0.936, 32.0),
    _gpu("rtx4090-24gb", "RTX 4090", 23.5, 165.0, 1.008, 32.0),
    _gpu("rtx5090-32gb", "RTX 5090", 31.3, 209.0, 1.792, 64.0),
)
# Parts of a device, and devices with less power under the same name.
_OTHER_DEVICES = {"MIG", "LAPTOP", "D"}


def find_gpu(name: str) -> Gpu:
    """The GPU of a name such as h100-80gb. Raises ConfigError with the known names."""
    wanted = name.strip().lower()
    for gpu in GPUS:
        if gpu.name == wanted:
            return gpu
    names = [gpu.name for gpu in GPUS]
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
    meant = f", did you mean {close[0]}?" if close else ";"
    raise ConfigError(f"--gpu {name}: no such GPU{meant} known: {', '.join(names)}")


def known_gpu(name: str) -> Gpu | None:
    """The GPU of a device's name such as "NVIDIA H100 80GB HBM3"; None for an unknown one."""
    words = set(re.findall(r"[A-Z0-9]+", name.upper()))
    if words & _OTHER_DEVICES:
        return None
    return next((gpu for gpu in GPUS if words.issuperset(gpu.words.split())), None)
