"""Runs mutated inputs through a reader. Each input has its own seed, and can be tried again alone."""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from erniekit.errors import ErnieKitError

# Makes one input in a directory and reads it. What it raises is the reader's answer.
Target = Callable[[random.Random, Path], None]
HANG_SECONDS = 60  # of one input; a guard, nothing is measured


class FuzzError(AssertionError):
    """An input that is neither accepted nor refused in words."""


def fuzz(target: Target, inputs: range, directory: Path) -> Counter[str]:
    """Tries inputs by number: how many are accepted and refused. Raises FuzzError with the number of a failing one."""
    outcomes: Counter[str] = Counter()
    for number in inputs:
        try:
            with _deadline():
                target(random.Random(f"{target.__name__} {number}"), directory)
            outcomes["accepted"] += 1
        except ErnieKitError as error:
            _check_message(str(error), target, number)
            outcomes["refused"] += 1
        except Exception as error:
            what = f"{type(error).__name__}: {str(error)[:500]}"
            raise FuzzError(f"{target.__name__} {number}: {what}") from error
    return outcomes


def put(file: Path, content: bytes) -> None:
    """Write a new file: some file systems flush one that is cut to nothing and written again."""
    file.unlink(missing_ok=True)
    file.write_bytes(content)


def _check_message(message: str, target: Target, number: int) -> None:
    try:
        message.encode()
    except UnicodeEncodeError:
        raise FuzzError(f"{target.__name__} {number}: the message cannot be printed") from None
    if not message or max(map(len, message.split("\n"))) > 2000:
        raise FuzzError(f"{target.__name__} {number}: a message of {len(message):,} characters")


@contextmanager
def _deadline() -> Iterator[None]:
    def hangs(number: int, frame: FrameType | None) -> None:
        raise FuzzError(f"hangs: no answer in {HANG_SECONDS} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def mutated_bytes(rng: random.Random, content: bytes) -> bytes:
    """Bytes with one to four changes: flipped, removed, repeated, inserted or cut off."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        length = rng.choice([1, 1, 2, 8, 64])
        match rng.randrange(6):
            case 0 if data:
                data[place % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                del data[place : place + length]
            case 2:
                data[place:place] = data[place : place + length]
            case 3:
                data[place:place] = rng.randbytes(length)
            case 4:
                data[place : place + length] = rng.choice(_TOKENS)
            case 5:
                del data[place:]
    return bytes(data)


_TOKENS = (
    *(b"", b"\0", b"-1", b"1e999", b"NaN", b"null", b"true", b"[]", b"{}", b'""', b'"\\ud800"', b"\xff\xfe"),
    *(
        b"9" * 5000,
        b"[" * 3000,
        b'{"a":' * 3000,
        b"18446744073709551615",
        b"0.5",
        b"\n",
        b"\\",
        b'"',
        b"&a",
        b"*a",
    ),
)


def mutated_value(rng: random.Random, value: object) -> object:
    """JSON with one of its values changed: another type, absurd, missing, repeated or moved."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        changed = dict(value)
        match rng.randrange(8):
            case 0:
                del changed[key]
            case 1:
                changed[rng.choice(_NAMES)] = changed.pop(key)
            case 2:
                changed[rng.choice(_NAMES)] = changed[key]
            case _:
                changed[key] = mutated_value(rng, value[key])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.85:
        items = list(value)
        place = rng.randrange(len(items))
        match rng.randrange(6):
            case 0:
                del items[place]
            case 1:
                items.insert(place, items[place])
            case 2:
                rng.shuffle(items)
            case _:
                items[place] = mutated_value(rng, items[place])
        return items
    if type(value) is int and rng.random() < 0.5:
        return rng.choice([value + 1, value - 1, -value, value * 2, value * 10**9, float(value)])
    return rng.choice(_VALUES)


_NAMES = ("", "a", "\0", "\ud800", "..", "__metadata__", "name\nwith a line", "x" * 5000)
_VALUES: tuple[object, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        2**64,
        10**30,
        0.5,
        -0.0,
        1e-38,
        1e308,
        float("nan"),
        float("inf"),
    ),
    *(
        "",
        "0",
        "\0",
        "\ud800",
        "../..",
        "/etc/passwd",
        "x" * 5000,
        [],
        {},
        [0],
        [[]],
        [{}],
        {"a": 1},
        ["a", 1, None],
    ),
)
