"""Paddle's tensors as arguments of Triton kernels."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import paddle
import pytest

from erniekit.kernels.triton import runtime


def test_the_interpreter_sees_the_memory_of_a_tensor() -> None:
    torch = pytest.importorskip("torch")
    tensor = paddle.arange(6, dtype="float32").reshape([2, 3])
    seen = runtime.pointer(tensor)
    assert seen.shape == (2, 3) and seen.dtype == torch.float32
    seen[1, 2] = 7
    assert tensor[1, 2] == 7


def test_a_gpu_gets_the_tensor_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_INTERPRETED", False)
    tensor = paddle.zeros([2])
    assert runtime.pointer(tensor) is tensor


def test_a_view_with_gaps_is_refused() -> None:
    paddle.set_flags({"FLAGS_use_stride_kernel": True})
    try:
        with pytest.raises(ValueError, match="contiguous"):
            runtime.pointer(paddle.zeros([3, 2]).t())
    finally:
        paddle.set_flags({"FLAGS_use_stride_kernel": False})


def test_a_gpu_launches_on_the_stream_of_paddle(monkeypatch: pytest.MonkeyPatch) -> None:
    scopes = []
    active = SimpleNamespace(get_current_stream=lambda device: 0)
    stand_in = SimpleNamespace(driver=SimpleNamespace(active=active))
    monkeypatch.setitem(sys.modules, "triton.runtime", stand_in)
    monkeypatch.setattr(paddle, "enable_compat", lambda scope, silent: scopes.append(scope))
    stream = SimpleNamespace(cuda_stream=1234)
    monkeypatch.setattr(paddle.base.core, "_get_current_stream", {2: stream}.get, raising=False)
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    runtime.enable_on_gpu()
    assert scopes == [{"triton"}]
    assert active.get_current_stream(2) == 1234
