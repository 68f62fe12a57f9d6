from __future__ import annotations

from erniekit.terminal import printable


def test_control_characters_are_replaced() -> None:
    assert printable("a\x1b[31m\x07b\n\tc数😀") == "a�[31m�b\n\tc数😀"
