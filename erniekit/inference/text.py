"""Between generated ids and text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from erniekit.errors import CheckpointError


class Tokenizer(Protocol):
    """What is needed of a fast tokenizer of transformers."""

    backend_tokenizer: Any


class AnswerText:
    """Reads generated ids as text. `eos_token_ids` are those on which engines stop, see `stop_token_ids`."""

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: tuple[int, ...]) -> None:
        self.eos_token_ids = eos_token_ids
        # The library's own tokenizer, as in Encoder: it never tidies up spaces.
        self._backend = tokenizer.backend_tokenizer

    @classmethod
    def from_checkpoint(cls, directory: str | Path) -> AnswerText:
        """Tokenizer and end tokens of a model directory. Raises CheckpointError."""
        from transformers import PreTrainedTokenizerFast  # slow to import

        try:
            # The generic class, as in make_encoder: no code of the checkpoint runs.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{directory}: no tokenizer can be loaded from it: {error}") from error
        return cls(tokenizer, stop_token_ids(Path(directory), tokenizer.eos_token_id))

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


def stop_token_ids(directory: Path, tokenizer_eos: int | None) -> tuple[int, ...]:
    """Ids that end an answer: generation_config.json's, else config.json's, else the tokenizer's.

    Raises CheckpointError where there is none: generation would never end.
    """
    for name in ("generation_config.json", "config.json"):
        file = directory / name
        if not file.is_file():
            continue
        try:
            found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{file}: cannot be read: {error}") from None
        if found is not None:
            return tuple(found) if isinstance(found, list) else (int(found),)
    if tokenizer_eos is None:
        raise CheckpointError(f"{directory}: no eos_token_id in generation_config.json: no answer would end")
    return (tokenizer_eos,)
