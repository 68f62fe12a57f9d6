"""Out of memory, as Paddle says it: what is reported, and that the checkpoint before is left."""

from pathlib import Path
from typing import Any

import paddle
import pytest

from erniekit.errors import ErnieKitError
from erniekit.objectives.sft import SftObjective
from erniekit.train.out_of_memory import is_out_of_memory
from erniekit.train.run import run_training
from tests.integration.training_setup import losses, make_config

# Of Paddle 3.3 on a GPU, without its stack.
PADDLE = """

--------------------------------------
C++ Traceback (most recent call last):
--------------------------------------
0   paddle::memory::allocation::CUDAAllocator::AllocateImpl(unsigned long)

----------------------
Error Message Summary:
----------------------
ResourceExhaustedError:

Out of memory error on GPU 0. Cannot allocate 2.500000GB memory on GPU 0, 79.1GB memory has been allocated and \
available memory is only 1.2GB.
"""


class Full(paddle.autograd.PyLayer):
    """Out of memory in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor) -> paddle.Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor) -> paddle.Tensor:
        raise MemoryError(PADDLE)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_the_largest_sequence_the_plan_and_the_remedies_are_named(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch, backward: bool
) -> None:
    run = tmp_path / "run"
    config = make_config(run, model, data, train__max_steps=3, checkpoint__save_every=1)
    original, calls = SftObjective.__call__, []

    def call(objective: SftObjective, *arguments: Any) -> Any:
        calls.append(1)
        output = original(objective, *arguments)
        if len(calls) < 4:
            return output
        if not backward:
            raise MemoryError(PADDLE)
        return type(output)(Full.apply(output.total), output.loss_sum, output.num_loss_tokens, output.routing)

    with monkeypatch.context() as patch:
        patch.setattr(SftObjective, "__call__", call)
        with pytest.raises(ErnieKitError) as raised:
            run_training(config)
    text = str(raised.value)
    assert text.startswith("the machine is out of memory. Step 2: the largest sequence of this process has 1")
    assert " tokens and " in text and " patches of images, of the samples " in text and ".jsonl:" in text
    assert "memory: weights 7.0 MiB, gradients 7.0 MiB, optimizer 14.1 MiB, activations" in text
    assert "Reported: Out of memory error on GPU 0. Cannot allocate 2.500000GB memory on GPU 0" in text
    remedies = text.partition("settings that need less, cheapest first:\n")[2].splitlines()
    assert any(line.strip().startswith("train.recompute=") for line in remedies)
    assert f"the newest complete checkpoint is {run / 'checkpoint-000001'}\n  --resume continues" in text
    assert run_training(config, resume=True) == 0
    assert [step for step, *_ in losses(run)] == [1, 2, 3]


def test_what_is_out_of_memory() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(OSError(f"(External) {PADDLE}"))
    assert not is_out_of_memory(OSError(28, "No space left on device"))
    assert not is_out_of_memory(ValueError("ResourceExhaustedError"))
