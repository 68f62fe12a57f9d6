"""Options of `erniekit serve` that need no server."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from erniekit.cli.serve import ApiKey, on_command_line


@pytest.mark.parametrize(
    ("arguments", "variables", "seen"),
    [(["--api-key", "a"], {}, True), ([], {"ERNIEKIT_API_KEY": "a"}, False), ([], {}, False)],
)
def test_whether_a_key_is_on_the_command_line(
    arguments: list[str], variables: dict[str, str], seen: bool
) -> None:
    found: list[tuple[str, bool]] = []
    app = typer.Typer()

    @app.command()
    def command(context: typer.Context, api_key: ApiKey = "") -> None:
        found.append((api_key, on_command_line(context, "api_key")))

    assert CliRunner().invoke(app, arguments, env=variables).exit_code == 0
    assert found == [("a" if arguments or variables else "", seen)]
