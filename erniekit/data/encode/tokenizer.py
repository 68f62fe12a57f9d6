"""A checkpoint's tokenizer, its stop tokens, and its media tokens."""

from __future__ import annotations

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
    """The methods of a tokenizer that `control_tokens` calls."""

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        """The tokens beside the trained vocabulary, each with `content` and `special`."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, None where there is none."""
        ...


_SUFFIXES = (".json", ".jinja", ".model", ".txt")


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a model directory, from local files. Raises CheckpointError.

    The generic class: AutoTokenizer would offer to run the code that VL checkpoints carry.
    """
    # Here, because it takes seconds to import and most of the command line does without.
    from transformers import PreTrainedTokenizerFast

    refuse_placeholders(Path(directory), _SUFFIXES)
    try:
        return PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    except MemoryError:
        raise
    except Exception as error:  # on damaged files the library raises nearly anything
        what = clipped(f"{type(error).__name__}: {error}", 400)
        raise CheckpointError(f"{directory}: no tokenizer can be loaded from it: {what}") from error


def control_tokens(tokenizer: FastTokenizer) -> dict[int, str]:
    """Id -> name of the tokens that are never words of an answer: ends, beginnings, roles, media, masks."""
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
    """On which ids engines stop: generation_config.json's, else config.json's, else the tokenizer's; () for none."""
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
