"""`erniekit config convert`, and commands of other trainers."""

from pathlib import Path

import pytest

from erniekit.cli.main import COMMANDS, GROUPS, OTHER_COMMANDS
from erniekit.config import load_config
from tests.command import erniekit

OLD = Path(__file__).parents[1] / "config" / "other_trainers"


def test_the_file_is_written_and_the_report_printed(tmp_path: Path) -> None:
    new = tmp_path / "runs" / "new.yaml"
    done = erniekit("config", "convert", OLD / "erniekit_vl_full.yaml", "-o", new, "--gpus", 16)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ERNIEKit: 54 keys\n\nMapped:\n")
    assert done.stdout.endswith(f"\nwrote {new}; next: erniekit train {new} --dry-run\n")
    assert load_config(new).train.rows_per_step == 8
    again = erniekit("config", "convert", OLD / "swift_dpo.yaml", "-o", new)
    assert (again.returncode, again.stderr) == (1, f"error: {new}: exists already; choose another --output\n")
    assert load_config(new).train.rows_per_step == 8


def test_without_output_the_file_is_printed_and_the_report_is_on_stderr() -> None:
    done = erniekit("config", "convert", OLD / "swift_dpo.yaml", "--from", "swift")
    assert done.returncode == 0
    assert done.stdout == (OLD / "converted" / "swift_dpo.yaml").read_text(encoding="utf-8")
    assert done.stderr.startswith("ms-swift: 19 keys\n")


def test_bad_input_is_one_error(tmp_path: Path) -> None:
    done = erniekit("config", "convert", tmp_path / "no.yaml")
    assert (done.returncode, done.stderr) == (1, f"error: {tmp_path / 'no.yaml'}: no such file\n")
    assert erniekit("config", "convert").returncode == 2
    assert erniekit("config", "convert", "a.yaml", "--gpus", 0).returncode == 2


@pytest.mark.parametrize("name", OTHER_COMMANDS)
def test_commands_of_other_trainers_get_an_answer(name: str) -> None:
    assert name not in COMMANDS and name not in GROUPS
    done = erniekit(name, "run.yaml")
    assert done.returncode == 2
    assert done.stderr == f"error: there is no command {name}: {OTHER_COMMANDS[name]}\n"
    assert "`erniekit " in done.stderr
