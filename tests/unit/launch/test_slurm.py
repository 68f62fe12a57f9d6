"""Which worker a process is by the variables of Slurm."""

import pytest

from erniekit.distributed.worker import Worker
from erniekit.errors import ConfigError
from erniekit.launch.slurm import first_node, slurm_gpu, slurm_worker, tasks_per_node

TASK = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_STEP_NODELIST": "gpu[03-05,11]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


def test_a_task_of_a_step() -> None:
    assert slurm_worker(TASK) == Worker(3, 7, 1, 2, ("gpu03", 19567))
    last = TASK | {"SLURM_PROCID": "6", "SLURM_LOCALID": "0", "SLURM_NODEID": "3"}
    assert slurm_worker(last) == Worker(6, 7, 0, 1, ("gpu03", 19567))
    chosen = slurm_worker(TASK | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "6170"})
    assert chosen is not None and chosen.master == ("10.0.0.1", 6170)


def test_no_task_of_a_step() -> None:
    assert slurm_worker({}) is None
    # A batch script runs outside of any step, and an interactive shell is a step of one task.
    script = {
        "SLURM_JOB_ID": "7",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_NTASKS": "8",
    }
    assert slurm_worker(script) is None
    assert slurm_worker(script | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}) is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"SLURM_LOCALID": "0"}, "add --distribution=block to srun"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2"}, "which does not describe the 7 tasks of SLURM_STEP_NUM_TASKS"),
        ({"SLURM_STEP_TASKS_PER_NODE": ""}, "SLURM_STEP_TASKS_PER_NODE is ''"),
        ({"SLURM_NODEID": "4"}, "with node 4 of SLURM_NODEID"),
        ({"SLURM_PROCID": "x"}, "SLURM_PROCID is 'x', which is not a whole number"),
        ({"SLURM_STEP_NODELIST": ""}, "set MASTER_ADDR to its name"),
        ({"MASTER_PORT": "http"}, "'gpu03' and 'http', which is not a host and a port"),
    ],
)
def test_variables_that_contradict_each_other(changed: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        slurm_worker(TASK | changed)


@pytest.mark.parametrize(("visible", "gpu"), [(None, 1), ("", 1), ("0,1", 1), ("5", 0)])
def test_the_gpu_of_a_task(visible: str | None, gpu: int) -> None:
    assert slurm_gpu(TASK | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})) == gpu


@pytest.mark.parametrize(
    ("text", "tasks"),
    [("4", [4]), ("2(x3),1", [2, 2, 2, 1]), ("1,2(x2)", [1, 2, 2]), ("", []), ("two", []), ("2,", [])],
)
def test_tasks_per_node(text: str, tasks: list[int]) -> None:
    assert tasks_per_node(text) == tasks


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("one", "one"),
        ("a1,a2", "a1"),
        ("gpu[03-07,10],login1", "gpu03"),
        ("r[2,4]n[1-8]", "r2n1"),
        ("n-1.x", "n-1.x"),
    ],
)
def test_the_first_node(nodes: str, host: str) -> None:
    assert first_node(nodes) == host
