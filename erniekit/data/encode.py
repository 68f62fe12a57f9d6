"""From a conversation to a Document: tokens, labels, and room for its pictures.

Where texts are cut for the tokenizer matters, because BPE merges across what it is given as one string.
Everything that is context (pictures included) is one string; each trained answer, with its terminator, is
another, since the engine that serves the model tokenises the prompt alone and the answer comes after it token
by token. So the ids of a prompt equal apply_chat_template(messages, add_generation_prompt=True), the ids of a
first answer are encode(answer + terminator) after those, and the text of a whole conversation equals
apply_chat_template's. Its ids may differ from apply_chat_template's of the whole conversation in one place:
there, the space that ends "Assistant: " may merge with the answer's first word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from erniekit.data.conversation import Conversation, ImagePart, SampleError
from erniekit.data.document import IGNORE, Document, Media
from erniekit.data.media import describe, image_size
from erniekit.data.template import BEGIN, TERMINATOR, MediaSpan, Span, Template, resolve_template
from erniekit.data.tokenizer import load_tokenizer, read_json_object, stop_token_ids
from erniekit.data.vision import ImageSpec, image_grid, num_tokens
from erniekit.errors import CheckpointError

Ids = npt.NDArray[np.int32]

# What engines expand to a picture or a video before tokenising.
_ENGINE_MARKS = ("<|image@placeholder|>", "<|video@placeholder|>")


class Tokenizer(Protocol):
    """What an Encoder needs of a fast tokenizer of transformers."""

    backend_tokenizer: Any

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str | None]:
        """The tokens of ids."""
        ...


@dataclass(frozen=True, slots=True)
class MediaTokens:
    """Token ids of pictures and videos. In the flat layout videos use the image placeholder."""

    image_placeholder: int
    image_start: int
    image_end: int
    video_placeholder: int
    video_start: int
    video_end: int


class Encoder:
    """Turns conversations into documents, for one tokenizer, template and kind of pictures.

    media_tokens and image_spec: both, or both None for a text model. eos_token_ids: on which generation stops
    (generation_config.json). Turns end with `<|end_of_sentence|>`, which need not be among them: then its
    label becomes the first of eos_token_ids, while the input keeps it, so that the tuned model stops in
    engines. Raises CheckpointError when the tokenizer does not know the template's or the pictures' tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Template,
        *,
        eos_token_ids: tuple[int, ...],
        media_tokens: MediaTokens | None = None,
        image_spec: ImageSpec | None = None,
    ) -> None:
        if (media_tokens is None) != (image_spec is None):
            raise ValueError("media_tokens and image_spec go together")
        self.template = template
        self.image_spec = image_spec
        self.media_tokens = media_tokens
        # The tokenizer inside: for a short chat transformers' wrapper costs more than the work itself.
        self._tokenise = tokenizer.backend_tokenizer.encode
        _single_id(tokenizer, BEGIN)
        terminator = _single_id(tokenizer, TERMINATOR)
        stops = not eos_token_ids or terminator in eos_token_ids
        self._terminator_label = terminator if stops else eos_token_ids[0]
        reserved = {BEGIN, TERMINATOR, *_ENGINE_MARKS}
        self._media_text = ""
        if media_tokens is not None:
            reserved.update(_media_token(tokenizer, id) for id in astuple(media_tokens))
            wrapped = (media_tokens.image_start, media_tokens.image_placeholder, media_tokens.image_end)
            self._media_text = "".join(_media_token(tokenizer, id) for id in wrapped)
        self._reserved = re.compile("|".join(re.escape(text) for text in sorted(reserved)))

    def encode(self, conversation: Conversation) -> Document:
        """A conversation with its answers, for training.

        Raises SampleError, also when no token carries loss.
        """
        document = self._encode(conversation, self.template.render(conversation))
        if not document.num_loss_tokens:
            detail = "no token carries loss: at least one assistant message must be trained"
            raise SampleError(conversation.sample_id, "no loss token", detail)
        return document

    def encode_prompt(self, conversation: Conversation) -> Document:
        """A conversation up to the assistant's next answer, for generation; no labels. Raises SampleError."""
        return self._encode(conversation, self.template.render_prompt(conversation))

    def _encode(self, conversation: Conversation, spans: Iterable[Span]) -> Document:
        sample_id = conversation.sample_id
        self._refuse_reserved(conversation)
        ids: list[Ids] = []
        targets: list[Ids] = []
        media: list[Media] = []
        length = 0
        for text, trained, sources in self._chunks(spans, sample_id):
            chunk = np.asarray(self._tokenise(text, add_special_tokens=False).ids, np.int32)
            if sources:
                chunk, placed = self._place(chunk, sources, length, sample_id)
                media += placed
            target = np.full(len(chunk), IGNORE, np.int32)
            if trained:
                target[:] = chunk
                target[-1] = self._terminator_label
            ids.append(chunk)
            targets.append(target)
            length += len(chunk)
        targets.append(np.full(1, IGNORE, np.int32))
        return Document(np.concatenate(ids), np.concatenate(targets)[1:], tuple(media), sample_id)

    def _chunks(self, spans: Iterable[Span], sample_id: str) -> Iterable[tuple[str, bool, list[str | bytes]]]:
        """Strings to tokenise, each all trained or all context, with the pictures that it contains."""
        text: list[str] = []
        sources: list[str | bytes] = []
        for span in spans:
            if isinstance(span, MediaSpan):
                if self.image_spec is None:
                    detail = f"this model takes no pictures, the sample has {describe(span.source)}"
                    raise SampleError(sample_id, "picture for a text model", detail)
                text.append(self._media_text)
                sources.append(span.source)
            elif span.trained:
                if text:
                    yield "".join(text), False, sources
                yield span.text, True, []
                text, sources = [], []
            else:
                text.append(span.text)
        if text:
            yield "".join(text), False, sources

    def _place(
        self,
        ids: Ids,
        sources: list[str | bytes],
        offset: int,
        sample_id: str,
    ) -> tuple[Ids, list[Media]]:
        """Widens each placeholder to the number of tokens of its picture, known from the picture's header."""
        assert self.image_spec is not None and self.media_tokens is not None
        counts = np.ones(len(ids), np.int64)
        media: list[Media] = []
        placeholders = np.flatnonzero(ids == self.media_tokens.image_placeholder)
        for index, source in zip(placeholders, sources, strict=True):
            height, width = image_size(source, sample_id)
            try:
                grid = image_grid(height, width, self.image_spec)
            except ValueError as error:
                detail = f"the picture {describe(source)} cannot be used: {error}"
                raise SampleError(sample_id, "bad image", detail) from error
            tokens = num_tokens(grid, self.image_spec)
            media.append(Media(source, grid, offset + int(index), tokens, self.image_spec.merge_size))
            counts[index] = tokens
            offset += tokens - 1
        return np.repeat(ids, counts), media

    def _refuse_reserved(self, conversation: Conversation) -> None:
        for message in conversation.messages:
            for part in message.parts:
                if isinstance(part, ImagePart):
                    continue
                found = self._reserved.search(part.text)
                if found:
                    detail = (
                        f"a {message.role} text contains {found.group()}, which only the template may write"
                    )
                    raise SampleError(conversation.sample_id, "reserved token", detail)


def _single_id(tokenizer: Tokenizer, text: str) -> int:
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    if len(ids) != 1 or tokenizer.convert_ids_to_tokens(ids) != [text]:
        raise CheckpointError(f"the tokenizer has no token {text}, which ERNIE's chat templates need")
    return int(ids[0])


def _media_token(tokenizer: Tokenizer, id: int) -> str:
    token = tokenizer.convert_ids_to_tokens([id])[0]
    if token is None or tokenizer.backend_tokenizer.encode(token, add_special_tokens=False).ids != [id]:
        raise CheckpointError(
            f"config.json names {id} as the id of a media token, but the tokenizer does not"
        )
    return token


def make_encoder(
    directory: Path, template: str = "auto", min_pixels: int | None = None, max_pixels: int | None = None
) -> Encoder:
    """The Encoder of a checkpoint: its tokenizer, chat template, stop tokens and, for a VL model, pictures.

    Reads local files only and runs no code of the checkpoint but its Jinja chat template, which transformers
    sandboxes. template, min_pixels, max_pixels: as in config section data. Raises CheckpointError, DataError,
    ConfigError.
    """
    directory = Path(directory)
    config = read_json_object(directory / "config.json")
    tokenizer = load_tokenizer(directory)
    media_tokens = _media_tokens(config, directory)
    spec = None if media_tokens is None else ImageSpec.from_checkpoint(directory, min_pixels, max_pixels)
    return Encoder(
        cast(Tokenizer, tokenizer),
        resolve_template(template, tokenizer, is_vl=media_tokens is not None),
        eos_token_ids=stop_token_ids(directory, tokenizer.eos_token_id),
        media_tokens=media_tokens,
        image_spec=spec,
    )


def _media_tokens(config: dict[str, Any], directory: Path) -> MediaTokens | None:
    """Media token ids in config.json: flat (Hub) or nested (transformers); None for a text model."""
    kind = config.get("model_type")
    if kind not in ("ernie4_5_moe_vl", "ernie4_5_vl_moe"):
        return None
    image = "im_patch_id" if kind == "ernie4_5_moe_vl" else "image_token_id"
    video = "im_patch_id" if kind == "ernie4_5_moe_vl" else "video_token_id"
    markers = ("image_start_token_id", "image_end_token_id", "video_start_token_id", "video_end_token_id")
    missing = [key for key in (image, video, *markers) if not isinstance(config.get(key), int)]
    if missing:
        raise CheckpointError(
            f"{directory / 'config.json'}: a {kind} model needs the token ids {', '.join(missing)}"
        )
    image_start, image_end, video_start, video_end = (config[key] for key in markers)
    return MediaTokens(config[image], image_start, image_end, config[video], video_start, video_end)
