"""The words of a text, and normalization of spelling, for metrics."""

from __future__ import annotations

import re
import unicodedata

# Scripts that put no spaces between words: Han, Hiragana, Katakana.
_CHARACTER = r"[\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
_WORD = re.compile(rf"{_CHARACTER}|(?:(?!{_CHARACTER})[^\W_])+")
_PIECE = re.compile(rf"{_CHARACTER}|(?:(?!{_CHARACTER})\S)+")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
# Parts of a number, not punctuation: the point in 3.5, the sign in -2, 1:2, 3/4.
_IN_NUMBER = re.compile(r"(?<=\d)[.:/](?=\d)|(?<![\w.])-(?=\.?\d)")
_MINUS_SIGNS = {ord(sign): "-" for sign in "\u2012\u2013\u2212"}


def fold(text: str) -> str:
    """Unicode NFKC, which replaces full-width and other compatibility forms, and case folding."""
    return unicodedata.normalize("NFKC", text).casefold()


def words(text: str) -> list[str]:
    """Runs of letters and digits, without case; each character of Chinese and Japanese."""
    return _WORD.findall(fold(text))


def normalize(text: str) -> str:
    """A text without case, punctuation, articles (a, an, the), full-width forms and extra spaces.

    This is normalize_answer of SQuAD's evaluation script (Rajpurkar et al. 2016), except that it also removes Unicode
    punctuation, and keeps the point, sign, colon and slash of a number, so that 3.5 is not 35. A text of punctuation
    only is kept.
    """
    folded = fold(text).translate(_MINUS_SIGNS)
    kept = {match.start() for match in _IN_NUMBER.finditer(folded)}
    plain = "".join(
        character for place, character in enumerate(folded) if place in kept or not _is_punctuation(character)
    )
    return " ".join(_ARTICLE.sub(" ", plain).split()) or " ".join(folded.split())


def tokens(text: str) -> list[str]:
    """`normalize` split at spaces, and Chinese and Japanese at every character."""
    return _PIECE.findall(normalize(text))


def _is_punctuation(character: str) -> bool:
    # SQuAD uses Python's string.punctuation, which includes ASCII symbols.
    return unicodedata.category(character)[0] == "P" or character in "$+<=>^`|~"
