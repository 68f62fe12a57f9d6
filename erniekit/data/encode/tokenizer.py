"""A checkpoint's tokenizer, the ids on which its answers end, and those of its pictures and videos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from erniekit.errors import CheckpointError
from erniekit.local_files import read_json_object, refuse_placeholders

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
    """What is needed of the tokenizers library to tell control tokens."""

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        """The tokens beside the trained vocabulary, each with `content` and `special`."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, None where there is none."""
        ...


_SUFFIXES = (".json", ".jinja", ".model", ".txt")


@dataclass(frozen=True, slots=True)
class MediaTokens:
    """Token ids of pictures and videos. In the flat layout videos use the image placeholder."""

    image_placeholder: int
    image_start: int
    image_end: int
    video_placeholder: int
    video_start: int
    video_end: int


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a model directory, from local files. Raises CheckpointError.

    The generic class: AutoTokenizer would offer to run the code that VL checkpoints carry.
    """
    # Here, because it takes seconds to import and most of the command line does without.
    from transformers import PreTrainedTokenizerFast

    refuse_placeholders(Path(directory), _SUFFIXES)
    try:
        return PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory}: no tokenizer can be loaded from it: {error}") from error


def control_tokens(tokenizer: FastTokenizer) -> dict[int, str]:
    """Id -> name of the tokens that are never words of an answer: ends, beginnings, roles, media, masks."""
    found = {id: token.content for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    for name in _CONTROL_TOKENS:
        id = tokenizer.token_to_id(name)
        if id is not None:
            found[id] = name
    return {
        id: name
        for id, name in found.items()
        if name not in _ANSWER_TOKENS and not name.startswith(_COORDINATES)
    }


def stop_token_ids(directory: str | Path, tokenizer_eos: int | None) -> tuple[int, ...]:
    """On which ids engines stop: generation_config.json's, else config.json's, else the tokenizer's; () for none."""
    for name in ("generation_config.json", "config.json"):
        file = Path(directory) / name
        found = read_json_object(file).get("eos_token_id") if file.is_file() else None
        if found is not None:
            return tuple(found) if isinstance(found, list) else (int(found),)
    return () if tokenizer_eos is None else (tokenizer_eos,)


def media_token_ids(directory: str | Path) -> MediaTokens | None:
    """Media token ids in config.json: flat (Hub) or nested (transformers); None for a text model.

    Raises CheckpointError.
    """
    file = Path(directory) / "config.json"
    config = read_json_object(file)
    kind = config.get("model_type")
    if kind not in ("ernie4_5_moe_vl", "ernie4_5_vl_moe"):
        return None
    image = "im_patch_id" if kind == "ernie4_5_moe_vl" else "image_token_id"
    video = "im_patch_id" if kind == "ernie4_5_moe_vl" else "video_token_id"
    markers = ("image_start_token_id", "image_end_token_id", "video_start_token_id", "video_end_token_id")
    missing = [key for key in (image, video, *markers) if not isinstance(config.get(key), int)]
    if missing:
        raise CheckpointError(
            f"{file}: a {kind} model needs the token ids {', '.join(missing)}; -Paddle releases lack them: use the "
            "release whose name ends in -PT"
        )
    image_start, image_end, video_start, video_end = (config[key] for key in markers)
    return MediaTokens(config[image], image_start, image_end, config[video], video_start, video_end)
