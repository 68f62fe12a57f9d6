"""Which form of each kernel a device gets, and what is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import get_args

import paddle
import pytest

from erniekit.config import choices
from erniekit.errors import ConfigError
from erniekit.kernels import choice
from erniekit.kernels.choice import FORMS, FUSED_ATTENTION, choose_forms, describe_forms, form_of, use_forms

NAMES = {
    "norm": ("triton", "paddle", "plain", "cpu"),
    "attention": ("flashmask", "flash", "plain"),
    "loss": ("triton", "plain"),
    "step": ("fused", "triton", "plain"),
    "sum": ("plain",),
}


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Kernels of all kinds in place of the real ones; what was enabled or set on the way."""
    calls: list[str] = []
    monkeypatch.setattr(choice, "FORMS", NAMES)
    monkeypatch.setattr(choice, "_chosen", {})
    monkeypatch.setattr(choice, "enable_on_gpu", lambda: calls.append("triton"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(paddle, "set_flags", lambda flags: calls.extend(flags))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    yield calls


@pytest.mark.parametrize(
    ("backend", "device", "expected"),
    [
        ("auto", "cpu", "cpu plain plain plain plain"),
        ("plain", "cpu", "plain plain plain plain plain"),
        ("auto", "gpu", "triton flashmask triton fused plain"),
        ("triton", "gpu", "triton flashmask triton triton plain"),
        ("paddle", "gpu", "paddle flashmask plain fused plain"),
        ("plain", "gpu", "plain plain plain plain plain"),
    ],
)
def test_the_backend_and_the_device_choose(
    forms: list[str], backend: str, device: str, expected: str
) -> None:
    chosen = choose_forms(backend, device)
    assert " ".join(chosen.values()) == expected
    assert [form_of(kernel) for kernel in NAMES] == expected.split()
    assert forms == (["triton"] if "triton" in expected else [])


def test_attention_may_be_chosen_by_itself(forms: list[str]) -> None:
    assert choose_forms("auto", "gpu", attention="flash")["attention"] == "flash"
    assert "attention flash, " in describe_forms("bfloat16")
    # Its kernels have no float32.
    assert "attention plain, " in describe_forms("float32")
    assert set(get_args(choices.AttentionKernel)) == {"auto", *FUSED_ATTENTION}
    assert set(FUSED_ATTENTION) < set(FORMS["attention"])
    with pytest.raises(ConfigError, match=r"kernels\.attention flash needs a GPU"):
        choose_forms("auto", "cpu", attention="flash")


def test_every_backend_is_a_choice_of_the_configuration() -> None:
    assert get_args(choices.KernelBackend) == ("auto", "triton", "paddle", "plain")


def test_every_kernel_has_a_plain_form() -> None:
    for kernel, names in FORMS.items():
        assert "plain" in names, kernel
        assert "cpu" not in names[:-1], kernel  # a GPU takes the first


@pytest.mark.parametrize("backend", ["triton", "paddle"])
def test_a_backend_for_gpus_is_refused_on_a_cpu(forms: list[str], backend: str) -> None:
    with pytest.raises(ConfigError, match=rf"kernels\.backend {backend} needs a GPU; use auto or plain"):
        choose_forms(backend, "cpu")


def test_the_interpreter_runs_triton_on_a_cpu(forms: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    chosen = choose_forms("triton", "cpu")
    assert " ".join(chosen.values()) == "triton plain triton triton plain"
    assert forms == []


def test_missing_triton_is_an_error_that_says_what_to_install(
    forms: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'erniekit\[gpu\]', or train with kernels.backend"):
        choose_forms("auto", "gpu")
    assert choose_forms("paddle", "gpu")["norm"] == "paddle"


def test_triton_without_a_compiler_is_an_error_that_says_so(
    forms: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(choice, "enable_on_gpu", fail)
    with pytest.raises(ConfigError, match=r"cannot start: Failed to find C compiler\. It needs a C compiler"):
        choose_forms("auto", "gpu")


def test_deterministic_sets_the_flags_of_paddle_on_a_gpu_only(forms: list[str]) -> None:
    choose_forms("paddle", "gpu")
    choose_forms("auto", "cpu", deterministic=True)
    assert forms == []
    choose_forms("paddle", "gpu", deterministic=True)
    assert forms == ["FLAGS_cudnn_deterministic", "FLAGS_embedding_deterministic"]


def test_a_block_uses_another_form() -> None:
    before = describe_forms("bfloat16")
    with pytest.raises(RuntimeError), use_forms(rms_norm="plain"):
        assert form_of("rms_norm") == "plain"
        raise RuntimeError
    assert describe_forms("bfloat16") == before
    assert "rms_norm cpu" in before
    with pytest.raises(ValueError, match="rms_norm has no form fast"), use_forms(rms_norm="fast"):
        pass
