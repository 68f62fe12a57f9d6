"""The options --devices, --nodes, --node-rank and --master."""

import subprocess
import sys

import pytest

from erniekit.errors import ConfigError
from erniekit.launch import launch
from erniekit.launch.launch import Devices, LaunchPlan, Nodes, parse_devices, parse_nodes, plan_launch


@pytest.mark.parametrize(
    ("text", "gpus", "kind"),
    [
        ("cpu", (None,), "cpu"),
        ("cpu:3", (None, None, None), "cpu"),
        ("2", (2,), "gpu"),
        ("0,1, 3", (0, 1, 3), "gpu"),
    ],
)
def test_devices(text: str, gpus: tuple[int | None, ...], kind: str) -> None:
    devices = parse_devices(text)
    assert (devices.gpus, devices.kind) == (gpus, kind)


@pytest.mark.parametrize(
    "text", ["", "cpu:", "cpu:0", "cpu:-1", "cpu:x", "gpu", "0,", "0 1", "0,a", "1.5", "²"]
)
def test_not_a_device(text: str) -> None:
    with pytest.raises(ConfigError, match="it takes GPU numbers such as 0,1,2,3, or cpu:4"):
        parse_devices(text)


def test_a_gpu_twice() -> None:
    with pytest.raises(ConfigError, match="lists a GPU twice"):
        parse_devices("0,1,01")


def test_nodes() -> None:
    assert parse_nodes(1, None, None) == parse_nodes(1, 0, None) == Nodes()
    assert parse_nodes(3, 2, "10.0.0.1:6170") == Nodes(3, 2, ("10.0.0.1", 6170))
    assert launch.node_options(Nodes()) == []
    assert launch.node_options(Nodes(3, 2, ("h", 5))) == [
        "--nodes",
        "3",
        "--node-rank",
        "2",
        "--master",
        "h:5",
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, None, None), "--nodes is 0"),
        ((1, 1, None), "--node-rank and --master need --nodes"),
        ((1, None, "h:1"), "--node-rank and --master need --nodes"),
        ((2, None, "h:1"), "--nodes 2 needs --node-rank .0 to 1"),
        ((2, 0, None), "and --master HOST:PORT"),
        ((2, 2, "h:1"), "--node-rank is 2; with --nodes 2 it must be from 0 to 1"),
        ((2, 0, "h"), "--master is 'h'; it takes HOST:PORT"),
    ],
)
def test_nodes_that_contradict_each_other(values: tuple[int, int | None, str | None], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_nodes(*values)


def test_ranks_are_ordered_by_machine_and_device() -> None:
    plan = LaunchPlan(Devices((0, 2)), Nodes(3, 1, ("h", 5)))
    assert plan.world == 6
    workers = plan.workers(("h", 5))
    assert [(w.rank, w.world, w.local_rank, w.local_size, w.master) for w in workers] == [
        (2, 6, 0, 2, ("h", 5)),
        (3, 6, 1, 2, ("h", 5)),
    ]


@pytest.mark.parametrize(
    ("visible", "device", "gpus"),
    [
        (0, "auto", (None,)),
        (1, "auto", (0,)),
        (3, "auto", (0, 1, 2)),
        (3, "gpu", (0, 1, 2)),
        (3, "cpu", (None,)),
    ],
)
def test_without_devices(
    monkeypatch: pytest.MonkeyPatch, visible: int, device: str, gpus: tuple[int | None, ...]
) -> None:
    monkeypatch.setattr(launch, "visible_gpus", lambda: visible)
    assert plan_launch(None, Nodes(), device).devices.gpus == gpus
    chosen = parse_devices("cpu:2")
    assert plan_launch(chosen, Nodes(), device).devices == chosen


def test_several_machines_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "visible_gpus", lambda: 0)
    with pytest.raises(ConfigError, match="add --devices cpu:N"):
        plan_launch(None, Nodes(2, 0, ("h", 1)), "auto")


def test_command_lines_are_quoted() -> None:
    assert (
        launch.command_line(["train", "my run.yaml", "a=[b,c]"]) == "erniekit train 'my run.yaml' 'a=[b,c]'"
    )


def test_the_launcher_does_not_import_paddle() -> None:
    code = "import sys, erniekit.launch.launch\nprint(sorted({'paddle', 'numpy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
