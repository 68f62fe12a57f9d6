"""The help of every command, in this process."""

import re

import pytest

from erniekit.cli.main import COMMANDS, GROUPS
from tests.command import erniekit

EVERY_COMMAND = [*COMMANDS, *(f"{group} {name}" for group in GROUPS for name in GROUPS[group].commands)]


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_values_in_help_have_names_in_capitals(command: str) -> None:
    printed = erniekit(*command.split(), "--help").stdout
    options = printed.split("\nOptions:\n")[1]
    assert not re.findall(r"^  (?:-\w, )?--[\w-]+ (<(?:path|str|int|float)[^>]*>)", options, re.MULTILINE)
    usage = re.search(r"^Usage: erniekit .*?\n\n", printed, re.DOTALL)
    assert usage is not None
    assert not re.findall(r"[{\[][a-z]\w*[}\]]", usage[0])
