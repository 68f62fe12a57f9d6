"""The difference of two texts: complete, and common parts equal in both."""

from __future__ import annotations

import pytest

from erniekit.display.difference import DiffPiece, difference


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("", ""),
        ("a b", "a b"),
        ("", "a"),
        ("a  b\n\tc", "a b c!"),
        ("今天 day", "明天 days"),
        ("one two three four", "one 2 3 four"),
        ("x" * 9, "y"),
    ],
)
def test_pieces_are_the_whole_texts_and_what_is_the_same_is_equal(first: str, second: str) -> None:
    ours, theirs = difference(first, second)
    assert "".join(piece.text for piece in ours) == first
    assert "".join(piece.text for piece in theirs) == second
    assert [piece.text for piece in ours if piece.same] == [piece.text for piece in theirs if piece.same]


def test_very_long_texts_are_not_compared() -> None:
    long = "word " * 5000
    assert difference(long, long + "x") == ([DiffPiece(long, False)], [DiffPiece(long + "x", False)])


def test_white_space_between_differences_belongs_to_them() -> None:
    ours, theirs = difference("It has two wheels.", "It has no brakes.")
    assert [piece.text for piece in ours if not piece.same] == ["two wheels"]
    assert [piece.text for piece in theirs if not piece.same] == ["no brakes"]
