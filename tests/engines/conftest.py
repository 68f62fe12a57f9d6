"""Engines take minutes to start: their tests run only if they are asked for, with `make test-engines`."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "engines" in str(config.option.markexpr):
        return
    for item in items:
        if "engines" in item.path.parts:
            item.add_marker(
                pytest.mark.skip(
                    reason="needs the environments of `make engines`; run with `make test-engines`"
                )
            )
