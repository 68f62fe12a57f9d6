"""Text for people: escaped, counted and in tables."""

import unicodedata

from erniekit.display.text import counted, format_table, listed, visible


def test_ordinary_text_stays() -> None:
    text = "Paris 巴黎 é 👍\n\tindented"
    assert visible(text) == text


def test_nothing_that_controls_a_terminal_is_left() -> None:
    shown = visible("".join(map(chr, range(0x20))) + "\x7f" + "".join(map(chr, range(0x80, 0xA0))) + "\u202e")
    left = {character for character in shown if unicodedata.category(character) in ("Cc", "Cf")}
    assert left == {"\n", "\t"}
    assert visible("\x1b[31m\u202ex") == "␛[31m\\u202ex"


def test_numbers_have_their_plural() -> None:
    assert [counted(number, "row") for number in (0, 1, 2000)] == ["0 rows", "1 row", "2,000 rows"]


def test_a_long_list_is_cut() -> None:
    assert [listed(names, 2) for names in ([], ["a"], ["a", "b"])] == ["", "a", "a, b"]
    assert listed(list(map(str, range(2000))), 2) == "0, 1 and 1,998 more"


def test_columns_of_a_table_line_up() -> None:
    rows = [("a", "number"), ("longer", "1")]
    assert format_table(rows) == ["a       number", "longer       1"]
    assert format_table(rows, indent=2) == ["  a       number", "  longer       1"]
