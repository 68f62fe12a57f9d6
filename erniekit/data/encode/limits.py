"""Limits of a model: the sizes of its vocabulary and of its context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from erniekit.config import ModelConfig
from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.document import Document
from erniekit.data.encode.tokenizer import load_tokenizer, read_json_object
from erniekit.display.text import counted, listed
from erniekit.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BEYOND_VOCABULARY = "token beyond the vocabulary"
VOCAB_MULTIPLE = 64
"""A resized embedding has a multiple of this many rows: whole tiles for a GPU, and even shares for processes."""

_ADD_ROWS = "train with model.resize_vocab: true, which adds rows"
_NAMED_IDS = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "im_patch_id", "image_token_id", "video_token_id"),
    *("image_start_token_id", "image_end_token_id", "video_start_token_id", "video_end_token_id"),
)
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """The sizes of a model's vocabulary and context.

    vocab_size: rows of the embedding; max_positions: max_position_embeddings; None if config.json does not have the key
    (loading the model then fails or uses a default). beyond: (token, id) of the tokenizer's tokens without a row in the
    embedding, by id.
    """

    vocab_size: int | None = None
    max_positions: int | None = None
    beyond: tuple[tuple[str, int], ...] = ()

    def check_ids(self, ids: npt.NDArray[np.int32], sample_id: str) -> None:
        """Raise SampleError if a token of a document has no row in the embedding."""
        if not self.beyond or self.vocab_size is None:
            return
        over = np.flatnonzero(ids >= self.vocab_size)
        if len(over):
            found = int(ids[over[0]])
            token = next(token for token, token_id in self.beyond if token_id == found)
            detail = (
                f"token {token!r} has the id {found}, but the model's embedding has {self.vocab_size} rows "
                f"(vocab_size in config.json): {_ADD_ROWS}"
            )
            raise SampleError(sample_id, BEYOND_VOCABULARY, detail)

    def check_token(self, token: str, token_id: int) -> None:
        """Raise CheckpointError if a token of the chat template has no row in the embedding."""
        if self.vocab_size is not None and token_id >= self.vocab_size:
            raise CheckpointError(
                f"the chat template needs {token} (id {token_id}), but the model's embedding has "
                f"{self.vocab_size} rows (vocab_size in config.json): {_ADD_ROWS}"
            )

    def fits(self, document: Document) -> bool:
        """Whether the model has a position for every token of a document."""
        # Images and videos take fewer positions than tokens, and the answers of a pair share theirs.
        limit = self.max_positions
        return limit is None or len(document) <= limit or document.num_positions <= limit

    def check_positions(self, document: Document) -> None:
        """Raise SampleError for a document that does not fit."""
        if not self.fits(document):
            raise SampleError(document.sample_id, "too long", self.too_long(document))

    def too_long(self, document: Document) -> str:
        """The reason that a document does not fit, for an error message."""
        return (
            f"{counted(document.num_positions, 'position')}, more than the model's "
            f"max_position_embeddings={self.max_positions:,}"
        )

    def notes(self) -> list[str]:
        """Notes about tokens without a row in the embedding; empty if there are none."""
        if not self.beyond:
            return []
        shown = listed([f"{token!r} ({token_id})" for token, token_id in self.beyond], _SHOWN)
        what = counted(len(self.beyond), "token")
        return [
            f"the tokenizer has {what} without a row in the model's embedding, which has "
            f"{self.vocab_size:,}: {shown}; a sample that contains one is an error ({_ADD_ROWS})"
        ]


NO_LIMITS = ModelLimits()


def read_limits(
    directory: Path, tokenizer: Tokenizer, vocab_size: int | None = None, max_positions: int | None = None
) -> ModelLimits:
    """Read the limits of a checkpoint. vocab_size, max_positions: of the model in memory, if it was enlarged.

    Raises CheckpointError if config.json or generation_config.json has a token id without a row in the embedding.
    """
    config = _text_config(directory)
    rows = _larger(vocab_size, _integer(config, "vocab_size"))
    limits = ModelLimits(
        rows,
        _larger(max_positions, _integer(config, "max_position_embeddings")),
        () if rows is None else tuple(_tokens_from(tokenizer, rows)),
    )
    if rows is not None:
        for place, token_id in _named_ids(directory):
            if token_id >= rows:
                cure = _ADD_ROWS if token_id in {found for _, found in limits.beyond} else "correct it"
                raise CheckpointError(
                    f"{place} is {token_id}, but the model's embedding has {rows} rows "
                    f"(vocab_size in config.json): {cure}"
                )
    return limits


def resized_vocab_size(directory: str | Path) -> int:
    """The number of rows for all tokens of a checkpoint's tokenizer: its vocab_size, or a larger multiple of
    VOCAB_MULTIPLE.

    Raises CheckpointError if there is no tokenizer, or config.json has no vocab_size.
    """
    rows = _integer(_text_config(Path(directory)), "vocab_size")
    if rows is None:
        raise CheckpointError(f"{Path(directory) / 'config.json'}: key 'vocab_size' is missing")
    ids = [token_id for _, token_id in _tokens_from(load_tokenizer(directory).backend_tokenizer, rows)]
    return -(-(max(ids) + 1) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE if ids else rows


def enlarged_limits(model: ModelConfig) -> tuple[int | None, int | None]:
    """(vocab_size, max_positions) of an enlarged model; None: as in the checkpoint.

    Raises CheckpointError, and ConfigError if model.max_position_embeddings is below the checkpoint's.
    """
    wanted = model.max_position_embeddings
    own = _integer(_text_config(model.directory), "max_position_embeddings") if wanted is not None else None
    if wanted is not None and own is not None and wanted < own:
        raise ConfigError(
            f"model.max_position_embeddings: {wanted:,} is below the checkpoint's {own:,}; it only raises the limit. "
            "Use data.max_length for shorter samples"
        )
    return resized_vocab_size(model.directory) if model.resize_vocab else None, wanted


def _tokens_from(tokenizer: Tokenizer, rows: int) -> list[tuple[str, int]]:
    """(token, id) of the tokens with an id of at least `rows`, by id."""
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    return sorted(
        ((token, token_id) for token, token_id in vocabulary.items() if token_id >= rows),
        key=lambda item: item[1],
    )


def _named_ids(directory: Path) -> Iterator[tuple[str, int]]:
    """(file and key, id) of every token id that config.json and generation_config.json name."""
    for name in ("config.json", "generation_config.json"):
        file = directory / name
        if not file.is_file():
            continue
        content = read_json_object(file)
        nested = content.get("text_config")
        for section in (content, nested if isinstance(nested, dict) else {}):
            for key in _NAMED_IDS:
                value = section.get(key)
                for token_id in value if isinstance(value, list) else [value]:
                    if isinstance(token_id, int):
                        yield f"{file}: {key}", token_id


def _text_config(directory: Path) -> dict[str, Any]:
    """The keys of config.json that describe the language model, in its flat or its nested form."""
    config = read_json_object(directory / "config.json")
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def _larger(wanted: int | None, own: int | None) -> int | None:
    return own if wanted is None or (own is not None and own > wanted) else wanted


def _integer(config: dict[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) else None
