"""Between generated ids and text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from erniekit.data.tokenizer import load_tokenizer, stop_token_ids
from erniekit.errors import CheckpointError


class Tokenizer(Protocol):
    """What is needed of a fast tokenizer of transformers."""

    backend_tokenizer: Any


class AnswerText:
    """Reads generated ids as text. `eos_token_ids` are those on which engines stop."""

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: tuple[int, ...]) -> None:
        self.eos_token_ids = eos_token_ids
        # The library's own tokenizer, as in Encoder: it never tidies up spaces.
        self._backend = tokenizer.backend_tokenizer

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

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer without its end token; other special tokens are kept as text."""
        plain = ids[:-1] if self.ended(ids) else ids
        return str(self._backend.decode(list(plain), skip_special_tokens=False))

    def round_trip(self, text: str) -> str:
        """`text` as the tokenizer gives it back, which differs where it normalises characters."""
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return str(self._backend.decode(ids, skip_special_tokens=False))
