"""Compares values and gradients of every form of every kernel with a formula in float64."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from erniekit.doctor.cases import CASES, REAL, SMALL, Sizes
from erniekit.doctor.check import Check, Result, failed, ok
from erniekit.kernels.choice import FORMS, FUSED_ATTENTION, use_forms

# Norms of errors, relative to the norms of the values. In bfloat16 a result is rounded once or twice (2^-8 each).
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}


def kernel_checks(device: str) -> list[Check]:
    """A check for each kernel and form that this device has, and the same kernels without rows."""
    sizes = REAL if device == "gpu" else SMALL
    checks = []
    for kernel in CASES:
        for form in _forms(kernel, device):
            name = f"{kernel}, {form}"
            for dtype in ("float32", "bfloat16") if device == "gpu" else ("float32",):
                if form not in FUSED_ATTENTION or dtype == "bfloat16":
                    run = partial(check_form, kernel, form, dtype, sizes)
                    checks.append(Check("kernels", f"{name}, {dtype}", run))
            run = partial(check_no_rows, kernel, form, "bfloat16" if device == "gpu" else "float32", sizes)
            checks.append(Check("kernels", f"{name}, no rows", run))
    return checks


def _forms(kernel: str, device: str) -> list[str]:
    """The forms of a kernel that a device has."""
    if device == "gpu":
        return [form for form in FORMS[kernel] if form != "cpu"]
    return [form for form in FORMS[kernel] if form in ("plain", "cpu")]


def check_form(kernel: str, form: str, dtype: str, sizes: Sizes) -> Result:
    """Compare values and gradients of all cases with their formulas."""
    worst, where, count = 0.0, "", 0
    for case in CASES[kernel](sizes, sizes.tokens):
        with use_forms(**{kernel: form}):
            found = case.results(case.run, dtype, dtype)
        expected = case.results(case.formula, dtype, "float64")
        for number, (value, wanted) in enumerate(zip(found, expected, strict=True)):
            error = relative_error(value, wanted)
            count += 1
            # Keeps NaN.
            if worst <= error or math.isnan(error):
                worst, where = error, f"{case.name}, result {number}"
    allowed = TOLERANCE[dtype]
    figures = f"largest error {worst:.1e} of {count} values and gradients"
    if not worst <= allowed:
        return failed(f"{figures} ({where}), allowed {allowed:.0e}; kernels.backend: plain avoids this form")
    return ok(figures)


def check_no_rows(kernel: str, form: str, dtype: str, sizes: Sizes) -> Result:
    """Without rows a kernel returns no rows, and gradients of weights are zeros."""
    names = []
    for case in CASES[kernel](sizes, 0):
        with use_forms(**{kernel: form}):
            for value in case.results(case.run, dtype, dtype):
                if np.any(value != 0):
                    return failed(f"{case.name}: a result is not zero")
        names.append(case.name)
    return ok(", ".join(names))


def relative_error(value: np.ndarray, wanted: np.ndarray) -> float:
    """Norm of the difference, relative to the norm of the second; NaN if a value is NaN."""
    if value.shape != wanted.shape:
        raise ValueError(f"the shape is {list(value.shape)} instead of {list(wanted.shape)}")
    scale = float(np.linalg.norm(wanted))
    return float(np.linalg.norm(value - wanted)) / max(scale, 1e-30)
