"""Similarity of a text and its reference, from 0 to 1."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from erniekit.evaluation.metrics.words import fold, normalize, tokens, words

ANLS_THRESHOLD = 0.5


def normalized_match(answer: str, reference: str) -> float:
    """1 if both are equal after `normalize`: without case, punctuation, articles, extra spaces and full-width forms."""
    return float(normalize(answer) == normalize(reference))


def token_f1(answer: str, reference: str) -> float:
    """F1 over the bags of words of both texts.

    As in SQuAD (Rajpurkar et al. 2016, section 6.1); Chinese and Japanese by character, as in CMRC 2018.
    """
    found, wanted = tokens(answer), tokens(reference)
    return _f1(sum((Counter(found) & Counter(wanted)).values()), len(found), len(wanted))


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L: F1 over the longest common subsequence of words.

    Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3.1, with beta = 1; Chinese and
    Japanese by character; nothing is stemmed.
    """
    found, wanted = words(answer), words(reference)
    return _f1(longest_common_subsequence(found, wanted), len(found), len(wanted))


def anls(answer: str, reference: str) -> float:
    """1 - NL, where NL is the edit distance over the length of the longer text; 0 where NL is 0.5 or more.

    Average normalised Levenshtein similarity: Biten et al. 2019, "Scene Text Visual Question Answering", equation 1.
    Case, full-width forms and extra spaces are ignored. A reference that is a JSON list of strings is a list of
    accepted answers; the most similar one counts.
    """
    return max(_similarity(answer, accepted) for accepted in accepted_answers(reference))


def accepted_answers(reference: str) -> list[str]:
    """The strings of a reference that is a JSON list of strings, else the reference itself."""
    if reference.lstrip().startswith("["):
        try:
            value = json.loads(reference)
        except (ValueError, RecursionError):
            return [reference]
        if value and isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
    return [reference]


def _similarity(answer: str, reference: str) -> float:
    found, wanted = (" ".join(fold(text).split()) for text in (answer, reference))
    longest = max(len(found), len(wanted))
    if longest == 0:
        return 1.0
    distance = edit_distance(found, wanted) / longest
    return 1 - distance if distance < ANLS_THRESHOLD else 0.0


def _f1(common: int, found: int, wanted: int) -> float:
    if found == wanted == 0:
        return 1.0
    return 2 * common / (found + wanted)


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence.

    A row of the dynamic programming table is one integer, a bit per item: Hyyro 2004, "Bit-Parallel LCS-length
    Computation Revisited", figure 3.
    """
    places = _places(first)
    full = (1 << len(first)) - 1
    row = full
    for item in second:
        matches = row & places.get(item, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(first) - row.bit_count()


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """The fewest insertions, deletions and replacements between two sequences (Levenshtein).

    A column of the dynamic programming table is two integers, with bits where it rises and falls: Myers 1999, in the
    form of Hyyro 2003 ("A Bit-Vector Algorithm for Computing Levenshtein and Damerau Edit Distances").
    """
    if not first:
        return len(second)
    places = _places(first)
    full, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    rises, falls, distance = full, 0, len(first)
    for item in second:
        matches = places.get(item, 0)
        diagonal = (((matches & rises) + rises) ^ rises) | matches | falls
        right_rises = falls | ~(diagonal | rises)
        right_falls = rises & diagonal
        distance += bool(right_rises & last) - bool(right_falls & last)
        right_rises = (right_rises << 1) | 1
        rises = ((right_falls << 1) | ~(diagonal | right_rises)) & full
        falls = right_rises & diagonal & full
    return distance


def _places(items: Sequence[str]) -> dict[str, int]:
    """For each item, an integer with a bit set at each of its positions."""
    places: dict[str, int] = {}
    for place, item in enumerate(items):
        places[item] = places.get(item, 0) | 1 << place
    return places
