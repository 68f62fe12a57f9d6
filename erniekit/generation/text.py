"""Between generated ids and text."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from erniekit.data.encode.tokenizer import control_tokens, load_tokenizer, stop_token_ids
from erniekit.errors import CheckpointError

# So many tokens without a whole character at their end are no text: a character has four at most.
_MOST_HELD = 16


class Tokenizer(Protocol):
    """What is needed of a fast tokenizer of transformers."""

    backend_tokenizer: Any


class AnswerText:
    """Reads generated ids as text. `eos_token_ids` are those on which engines stop.

    One of these ends the text; any other control token gives none (`control_tokens`: id -> name), as engines have it.
    So no control token stands in a text, while one that the model spells out in other tokens is text.
    """

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: tuple[int, ...]) -> None:
        self.eos_token_ids = eos_token_ids
        # The library's own tokenizer, as in Encoder: it never tidies up spaces.
        self._backend = tokenizer.backend_tokenizer
        self.control_tokens = control_tokens(self._backend)

    @classmethod
    def from_checkpoint(cls, directory: str | Path) -> AnswerText:
        """Tokenizer and end tokens of a model directory. Raises CheckpointError."""
        tokenizer = load_tokenizer(directory)
        stops = stop_token_ids(directory, tokenizer.eos_token_id)
        if not stops:
            raise CheckpointError(
                f"{directory}: no eos_token_id in generation_config.json: no answer would end"
            )
        return cls(tokenizer, stops)

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether the model ended the answer itself."""
        return bool(ids) and ids[-1] in self.eos_token_ids

    def decode(self, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """The text of an answer up to its end token, or to the first of the `stop` texts.

        A control token in whose name a `stop` text stands ends it too.
        """
        if stop:
            # Cut exactly where generation stopped.
            stream = self.stream(stop)
            return "".join([stream.feed(id) for id in ids]) + stream.finish()
        return self._plain(itertools.takewhile(lambda id: id not in self.eos_token_ids, ids))

    def decode_all(self, ids: Sequence[int]) -> str:
        """Every token as text, control tokens by their names: what the model sees, not what a user does."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def _plain(self, ids: Iterable[int]) -> str:
        return self.decode_all([id for id in ids if id not in self.control_tokens])

    def stream(self, stop: Sequence[str] = ()) -> TextStream:
        """What decodes one answer token by token."""
        return TextStream(self, tuple(stop))

    def round_trip(self, text: str) -> str:
        """`text` as an answer can have it: without control tokens, and with characters as the tokenizer has them."""
        return self._plain(self._backend.encode(text, add_special_tokens=False).ids)


class TextStream:
    """Decodes an answer token by token; its pieces joined are what `AnswerText.decode` gives for the whole.

    Only bytes that are no text may come out otherwise, because the tokenizer judges all bytes in a row together.
    `stopped`: whether one of the `stop` texts has come up.
    """

    def __init__(self, text: AnswerText, stop: tuple[str, ...] = ()) -> None:
        self.stopped = False
        self._text = text
        self._stop = stop
        self._ids: list[int] = []
        # Tokens before `_told` are decoded and told; those from `_context` on decide how the next ones read.
        self._context = self._told = 0
        self._held = ""
        self._ended = False

    def feed(self, id: int) -> str:
        """The text that is certain now: no half character, no beginning of a stop text, no control token."""
        if self.stopped or self._ended:
            return ""
        if id in self._text.eos_token_ids:
            self._ended = True
            return ""
        name = self._text.control_tokens.get(id)
        if name is not None:
            if not any(stop in name for stop in self._stop):
                return ""
            told = self.finish()
            self.stopped = True
            return told
        self._ids.append(id)
        new = self._new()
        half = new.endswith("\N{REPLACEMENT CHARACTER}") and len(self._ids) - self._told < _MOST_HELD
        if not new or half:
            return ""
        self._context, self._told = self._told, len(self._ids)
        return self._cut(self._held + new)

    def finish(self) -> str:
        """What was held back, when nothing comes any more."""
        if self.stopped:
            return ""
        rest = self._cut(self._held + self._new())
        self._context = self._told = len(self._ids)
        rest, self._held = rest + self._held, ""
        return rest

    def _new(self) -> str:
        known = self._text.decode_all(self._ids[self._context : self._told])
        return self._text.decode_all(self._ids[self._context :])[len(known) :]

    def _cut(self, text: str) -> str:
        """What of the text can be told; keeps the rest."""
        self._held = ""
        found = [place for place in map(text.find, self._stop) if place >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        held = max((held_back(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def held_back(text: str, mark: str) -> int:
    """How many characters at the end of the text may be the beginning of a mark that is not whole yet."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0
