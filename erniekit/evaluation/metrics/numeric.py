"""Numbers in answers, compared with the reference."""

from __future__ import annotations

import math
import re
import unicodedata

RELATIVE_TOLERANCE = 1e-6

_FACTORS = {
    "%": 1e-2,
    "percent": 1e-2,
    "\u2030": 1e-3,
    "\u4e07": 1e4,
    "\u4ebf": 1e8,
    "thousand": 1e3,
    "million": 1e6,
    "billion": 1e9,
    "trillion": 1e12,
}
# Not inside a word or another number: GPT4, v1.2.3, 10-20.
_START = r"(?<![A-Za-z0-9_])(?<!\d\.)(?P<sign>[-+])?[$\u20ac\u00a3\u00a5]?\s?"
_FRACTION = r"(?:(?P<whole>\d+)\s+)?(?P<top>\d+)\s?/\s?(?P<bottom>\d+)"
_DECIMAL = r"(?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?P<power>e[-+]?\d+)?"
_FACTOR = r"(?:\s?(?P<factor>[%\u2030\u4e07\u4ebf]|(?:percent|thousand|(?:m|b|tr)illion)\b))?"
_NUMBER = re.compile(f"{_START}(?:{_FRACTION}|{_DECIMAL}){_FACTOR}", re.IGNORECASE | re.ASCII)
# One or two words, or a sign: 12 km, 5 m/s, 20°C, 5元, 12 US dollars.
_WORD = r"[^\W\d_]+(?:\^?[23])?"
_UNIT = re.compile(rf"\s*(?:(?:{_WORD}|[°'\"]\s?[a-z]?)(?:[ /·*-]{_WORD})?)?\s*\.?", re.IGNORECASE)
_BEFORE_VULGAR = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])")  # 1½ must not become 11/2
_SIGNS = str.maketrans({"\u2212": "-", "\u2012": "-", "\u2013": "-", "\u2044": "/"})


def parse_number(text: str) -> float | None:
    """The value of a text that is one number with an optional unit; None for any other text.

    1,234.5; .5; -3; 1.5e3; 3/4; 1 1/2; 50% (= 0.5); 3 million; 1.2亿; $5; 12 km. Units are not converted.
    """
    plain = _plain(text).strip()
    match = _NUMBER.match(plain)
    if match is None or not _UNIT.fullmatch(plain, match.end()):
        return None
    return _value(match)


def last_number(text: str) -> float | None:
    """The value of the last number in a text; None without numbers."""
    matches = list(_NUMBER.finditer(_plain(text)))
    return _value(matches[-1]) if matches else None


def numeric_match(answer: str, reference: str, tolerance: float = RELATIVE_TOLERANCE) -> float | None:
    """1 if the answer's number equals the reference, within a relative tolerance; None if the reference is no number.

    The answer's number is the whole answer, as `parse_number` reads it, else the last number in it.
    """
    wanted = parse_number(reference)
    if wanted is None:
        return None
    found = parse_number(answer)
    if found is None:
        found = last_number(answer)
    return float(found is not None and math.isclose(found, wanted, rel_tol=tolerance))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", _BEFORE_VULGAR.sub(" ", text)).translate(_SIGNS)


def _value(match: re.Match[str]) -> float | None:
    if match["bottom"] is None:
        value = float(match["digits"].replace(",", "") + (match["power"] or ""))
    elif float(match["bottom"]) == 0:
        return None
    else:
        value = float(match["whole"] or 0) + float(match["top"]) / float(match["bottom"])
    value *= _FACTORS.get((match["factor"] or "").lower(), 1.0)
    return -value if match["sign"] == "-" else value
