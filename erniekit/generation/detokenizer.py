"""Decodes generated token ids to text: at once, or token by token."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from erniekit.data.encode.tokenizer import control_tokens, load_tokenizer, stop_token_ids
from erniekit.errors import CheckpointError

# A character has at most four tokens: where so many end with half a character, they are not text.
_MOST_PENDING = 16


class Tokenizer(Protocol):
    """The part of transformers' fast tokenizers that is used."""

    backend_tokenizer: Any


class Detokenizer:
    """Decodes answers. `eos_token_ids` are the tokens on which engines stop.

    An end token ends the text; the other control tokens (`control_tokens`: id -> name) are left out, as in engines.
    So no control token appears in a text, while a name that the model spells in other tokens is text.
    """

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: tuple[int, ...]) -> None:
        self.eos_token_ids = eos_token_ids
        # The backend, as in Encoder: it never cleans up spaces.
        self._backend = tokenizer.backend_tokenizer
        self.control_tokens = control_tokens(self._backend)

    @classmethod
    def from_checkpoint(cls, directory: str | Path) -> Detokenizer:
        """Tokenizer and end tokens of a model directory. Raises CheckpointError."""
        tokenizer = load_tokenizer(directory)
        stops = stop_token_ids(directory, tokenizer.eos_token_id)
        if not stops:
            raise CheckpointError(
                f"{directory}: no eos_token_id in generation_config.json: answers would never end"
            )
        return cls(tokenizer, stops)

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether the model ended the answer itself."""
        return bool(ids) and ids[-1] in self.eos_token_ids

    def decode(self, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """The text of an answer up to its end token, or to the first of the `stop` texts.

        A control token also ends it if its name contains a `stop` text.
        """
        if stop:
            # Cut exactly where generation stopped.
            stream = self.stream(stop)
            return "".join([stream.feed(token) for token in ids]) + stream.finish()
        return self._decode_text(itertools.takewhile(lambda token: token not in self.eos_token_ids, ids))

    def decode_all(self, ids: Sequence[int]) -> str:
        """All tokens as text, control tokens by name: what the model sees, not what a user sees."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def _decode_text(self, ids: Iterable[int]) -> str:
        return self.decode_all([token for token in ids if token not in self.control_tokens])

    def stream(self, stop: Sequence[str] = ()) -> IncrementalDetokenizer:
        """Decodes one answer token by token."""
        return IncrementalDetokenizer(self, tuple(stop))

    def round_trip(self, text: str) -> str:
        """`text` encoded and decoded: without control tokens, and normalised by the tokenizer."""
        return self._decode_text(self._backend.encode(text, add_special_tokens=False).ids)


class IncrementalDetokenizer:
    """Decodes an answer token by token. Joined, the pieces are the text that `Detokenizer.decode` gives.

    Only invalid UTF-8 may differ, because the tokenizer decodes consecutive bytes together. `stopped`: whether a
    `stop` text has appeared.
    """

    def __init__(self, detokenizer: Detokenizer, stop: tuple[str, ...] = ()) -> None:
        self.stopped = False
        self._detokenizer = detokenizer
        self._stop = stop
        self._ids: list[int] = []
        # Tokens before `_decoded` are decoded; those from `_context` on affect how the next ones are decoded.
        self._context = self._decoded = 0
        self._pending = ""
        self._ended = False

    def feed(self, token: int) -> str:
        """The text that is certain now: no half character, no start of a stop text, no control token."""
        if self.stopped or self._ended:
            return ""
        if token in self._detokenizer.eos_token_ids:
            self._ended = True
            return ""
        name = self._detokenizer.control_tokens.get(token)
        if name is not None:
            if not any(stop in name for stop in self._stop):
                return ""
            rest = self.finish()
            self.stopped = True
            return rest
        self._ids.append(token)
        new = self._new_text()
        half = new.endswith("\N{REPLACEMENT CHARACTER}") and len(self._ids) - self._decoded < _MOST_PENDING
        if not new or half:
            return ""
        self._context, self._decoded = self._decoded, len(self._ids)
        return self._cut(self._pending + new)

    def finish(self) -> str:
        """The pending text, after the last token."""
        if self.stopped:
            return ""
        rest = self._cut(self._pending + self._new_text())
        self._context = self._decoded = len(self._ids)
        rest, self._pending = rest + self._pending, ""
        return rest

    def _new_text(self) -> str:
        known = self._detokenizer.decode_all(self._ids[self._context : self._decoded])
        return self._detokenizer.decode_all(self._ids[self._context :])[len(known) :]

    def _cut(self, text: str) -> str:
        """The part of the text that cannot belong to a stop text; keeps the rest as pending."""
        self._pending = ""
        found = [place for place in map(text.find, self._stop) if place >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        pending = max((partial_match(text, stop) for stop in self._stop), default=0)
        self._pending = text[len(text) - pending :]
        return text[: len(text) - pending]


def partial_match(text: str, mark: str) -> int:
    """The number of characters at the end of the text that are the start of an incomplete mark."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0
