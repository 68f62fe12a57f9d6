"""The examples of other launchers call the command line as it is."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from paddle.distributed.launch.context.args_envs import parse_args

from tests.command import erniekit

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples" / "launch"


@pytest.fixture
def container() -> dict[str, Any]:
    job = yaml.safe_load((EXAMPLES / "paddlejob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PaddleJob")
    (kind,) = job["spec"]["paddleReplicaSpecs"]
    assert kind == "Worker"
    worker = job["spec"]["paddleReplicaSpecs"][kind]
    assert worker["replicas"] == 2 and worker["restartPolicy"] == "OnFailure"
    pod = worker["template"]["spec"]
    (found,) = pod["containers"]
    assert {mount["name"] for mount in found["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    return found


def test_paddlejob_has_what_the_operator_looks_for(container: dict[str, Any]) -> None:
    assert container["name"] == "paddle"
    assert [port["name"] for port in container["ports"]] == ["master"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] > 1


def test_paddlejob_runs_the_command_line(container: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert container["command"] == ["python", "-m", "paddle.distributed.launch"]
    monkeypatch.setattr(sys, "argv", ["launch", *container["args"]])
    parsed, _ = parse_args()
    assert parsed.training_script == "erniekit"
    assert parsed.training_script_args[-2:] == ["--resume", "auto"]
    monkeypatch.chdir(ROOT)
    result = erniekit(*parsed.training_script_args, "--dry-run", "--no-weights")
    assert result.returncode == 0, result.stderr


def test_the_readme_lists_every_example() -> None:
    text = (EXAMPLES / "README.md").read_text()
    for file in EXAMPLES.iterdir():
        assert file.name == "README.md" or f"({file.name})" in text
