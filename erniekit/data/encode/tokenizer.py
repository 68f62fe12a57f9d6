"""A checkpoint's tokenizer, its stop tokens, and its media tokens."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from erniekit.display.text import clipped
from erniekit.errors import CheckpointError
from erniekit.json_fields import MOST
from erniekit.local_files import read_json_object, refuse_placeholders
from erniekit.vl_checkpoint import MediaTokens, read_media_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Control tokens by name, for tokenizers that do not mark all of them as special.
_CONTROL_TOKENS = (
    *("<unk>", "<s>", "</s>", "<|begin_of_sentence|>", "<|end_of_sentence|>", "<|endofprompt|>"),
    *("<|im_start|>", "<|im_end|>", "<|image@placeholder|>", "<|video@placeholder|>"),
    *("<|IMAGE_PLACEHOLDER|>", "<|AUDIO_PLACEHOLDER|>", "<|VIDEO_PLACEHOLDER|>"),
    *("<|CROP_COL_SEP|>", "<|CROP_ROW_SEP|>", "<|IMAGE_SEP|>", "<|IMAGE_START|>", "<|IMAGE_END|>"),
    *("<|VIDEO_START|>", "<|VIDEO_END|>", "<|ASR_START|>", "<|ASR_END|>"),
)
# Tokens that are part of an answer although tokenizers mark some of them as special: its tags, and coordinates.
_ANSWER_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<response>", "</response>")
_COORDINATES = "<|LOC_"


class FastTokenizer(Protocol):
    """The interface of the tokenizers library's tokenizer that `control_tokens` uses."""

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        """The added tokens by id, each with `content` and `special`."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """The id of a token; None if it does not exist."""
        ...


_SUFFIXES = (".json", ".jinja", ".model", ".txt")
_MAX_BYTES = 256 << 20  # of a file; a large vocabulary takes tens of MB
# A normalizer or decoder that replaces texts, several times in a row, may make gigabytes of a word.
_MAX_GROWTH = 1000


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a model directory, from local files. Raises CheckpointError.

    The generic class: AutoTokenizer would offer to run the code that VL checkpoints carry.
    """
    # Imported here because it takes seconds, and most commands do not need it.
    from transformers import PreTrainedTokenizerFast

    refuse_placeholders(Path(directory), _SUFFIXES)
    for file in sorted(Path(directory).glob("*")):
        if file.suffix in _SUFFIXES and file.is_file() and file.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{file}: has more than {_MAX_BYTES:,} bytes, the limit for such a file")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
        backend = tokenizer.backend_tokenizer
        # Settings of the program that saved the tokenizer: texts would be cut or padded without a word.
        backend.no_truncation()
        backend.no_padding()
        growth = max(_growth(backend.normalizer), _growth(backend.decoder))
    except MemoryError:
        raise
    except BaseException as error:  # the library raises many types of errors for damaged files
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        what = clipped(f"{type(error).__name__}: {error}", 400)
        raise CheckpointError(f"{directory}: cannot load the tokenizer: {what}") from error
    if growth > _MAX_GROWTH:
        raise CheckpointError(
            f"{directory}: the normalizer or decoder in tokenizer.json may write {growth:,.0f} characters for one, "
            f"more than {_MAX_GROWTH:,}, the limit"
        )
    return tokenizer


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of the tokenizer, which is written in Rust. It is no subclass of Exception."""
    return type(error).__name__ == "PanicException"


def _growth(component: Any) -> float:
    """How many characters a normalizer or decoder may write for one. component: None for none."""
    return 1.0 if component is None else _growth_of(json.loads(component.__getstate__()))


def _growth_of(step: dict[str, Any]) -> float:
    kind = step["type"]
    if kind == "Sequence":
        return math.prod(map(_growth_of, step.get("normalizers") or step.get("decoders") or ()))
    if kind == "Prepend":
        return 1.0 + len(step["prepend"])
    if kind == "Replace":
        # An empty text and a regular expression may match between all characters.
        length = len(step["pattern"].get("String", ""))
        return max(1.0, len(step["content"]) / length if length else 1.0 + len(step["content"]))
    return 1.0


def control_tokens(tokenizer: FastTokenizer) -> dict[int, str]:
    """Names by id of the tokens that are not part of the text of an answer: ends, beginnings, roles, media, masks."""
    found = {
        token_id: token.content
        for token_id, token in tokenizer.get_added_tokens_decoder().items()
        if token.special
    }
    for name in _CONTROL_TOKENS:
        token_id = tokenizer.token_to_id(name)
        if token_id is not None:
            found[token_id] = name
    return {
        token_id: name
        for token_id, name in found.items()
        if name not in _ANSWER_TOKENS and not name.startswith(_COORDINATES)
    }


def stop_token_ids(directory: str | Path, tokenizer_eos: int | None) -> tuple[int, ...]:
    """The ids at which engines stop: from generation_config.json, else config.json, else the tokenizer; () for none.

    Raises CheckpointError for values that are not token ids.
    """
    for name in ("generation_config.json", "config.json"):
        file = Path(directory) / name
        found = read_json_object(file).get("eos_token_id") if file.is_file() else None
        if found is not None:
            ids = found if isinstance(found, list) else [found]
            if not all(type(each) is int and 0 <= each < MOST for each in ids):
                raise CheckpointError(f"{file}: eos_token_id must be a token id or a list of them")
            return tuple(ids)
    return () if tokenizer_eos is None else (tokenizer_eos,)


def media_token_ids(directory: str | Path) -> MediaTokens | None:
    """Media token ids in config.json; None for a text model. Raises CheckpointError."""
    file = Path(directory) / "config.json"
    config = read_json_object(file)
    model_type = config.get("model_type")
    if model_type not in ("ernie4_5_moe_vl", "ernie4_5_vl_moe"):
        return None
    try:
        return read_media_tokens(config, nested=model_type == "ernie4_5_vl_moe")
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from None
