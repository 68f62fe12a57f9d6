"""Encodes a conversation as a Document: tokens, labels, and placeholders for its images and videos.

BPE merges characters across the whole string that it gets, so it matters how a conversation is split into strings. All
context up to a trained answer, including images, is one string. The part of the answer that the model generates, from
the reasoning to the terminator, is another one, since an engine tokenizes the prompt alone and then generates tokens.
Therefore:
- The ids of a prompt are equal to apply_chat_template(messages, add_generation_prompt=True).
- The ids of a first answer are encode(answer + terminator).
- The text of a whole conversation is equal to apply_chat_template's. Its ids may differ in one place: in
  apply_chat_template, the space at the end of "Assistant: " may merge with the first word of the answer.
Inside an answer, a token is trained if any of its characters is. The last token of a masked reasoning may therefore be
trained if it extends into the answer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from erniekit.config import Config, DataConfig
from erniekit.data.chat.conversation import (
    Conversation,
    ImagePart,
    Part,
    SampleError,
    ToolCallPart,
    VideoPart,
)
from erniekit.data.chat.families import BEGIN, TERMINATOR, resolve_template
from erniekit.data.chat.loss_policy import DEFAULT_POLICY, LossPolicy
from erniekit.data.chat.template import MediaSpan, Span, SpanKind, Template, TextSpan, require_answer
from erniekit.data.encode.document import IGNORE, Document
from erniekit.data.encode.limits import NO_LIMITS, ModelLimits, enlarged_limits, read_limits
from erniekit.data.encode.text_runs import text_runs, trained_tokens
from erniekit.data.encode.tokenizer import is_panic, load_tokenizer, media_token_ids, stop_token_ids
from erniekit.data.media.images import source_name
from erniekit.data.media.item import MAX_TOKENS, Media, MediaSpec, measure
from erniekit.data.media.patches import ImageSpec
from erniekit.display.text import clipped
from erniekit.errors import CheckpointError
from erniekit.local_files import require_model
from erniekit.vl_checkpoint import MediaTokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Ids = npt.NDArray[np.int32]

# Engines replace these by images and videos before tokenizing.
_ENGINE_MARKS = ("<|image@placeholder|>", "<|video@placeholder|>")
# Increase it when the encoding of a conversation changes, so that cached documents are not used again.
_VERSION = 3


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment of a document: its kind, its text, and the number of tokens that start in it.

    part: the image or video of a "media" segment. Its text consists of the markers and a single placeholder.
    """

    kind: SpanKind | Literal["media"]
    text: str
    tokens: int
    trained: bool
    part: ImagePart | VideoPart | None = None


class Encoder:
    """Encodes conversations as documents, for one tokenizer, template and processing of images and videos.

    It can be pickled, and a pickled encoder does not import transformers. media_tokens, media_spec: both None for a
    text model. eos_token_ids: the ids at which generation stops (generation_config.json). If the template's terminator
    is not among them, the label of a terminator is the first of eos_token_ids, so that the trained model stops in
    engines; the input keeps the terminator. limits: of the model. Raises CheckpointError if the tokenizer does not have
    the tokens of the template or of media, or the model has no embeddings for them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Template,
        *,
        eos_token_ids: tuple[int, ...],
        policy: LossPolicy = DEFAULT_POLICY,
        media_tokens: MediaTokens | None = None,
        media_spec: MediaSpec | None = None,
        limits: ModelLimits = NO_LIMITS,
    ) -> None:
        if (media_tokens is None) != (media_spec is None):
            raise ValueError("media_tokens and media_spec go together")
        self.template = template
        self.policy = policy
        self.media_spec = media_spec
        self.media_tokens = media_tokens
        self.limits = limits
        self._tokenizer = tokenizer
        for token in (*template.tokens, template.terminator):
            limits.check_token(token, _single_id(tokenizer, token))
        terminator = _single_id(tokenizer, template.terminator)
        stops = not eos_token_ids or terminator in eos_token_ids
        self._terminator_label = terminator if stops else eos_token_ids[0]
        self._end_of_text = eos_token_ids[0] if eos_token_ids else terminator
        reserved = {BEGIN, TERMINATOR, *template.tokens, *_ENGINE_MARKS}
        self._marks = {"image": "", "video": ""}
        if media_tokens is not None:
            names = [_media_token(tokenizer, token_id) for token_id in astuple(media_tokens)]
            reserved.update(names)
            image, image_start, image_end, video, video_start, video_end = names
            self._marks = {"image": image_start + image + image_end, "video": video_start + video + video_end}
        self._reserved = re.compile("|".join(re.escape(text) for text in sorted(reserved)))

    @property
    def image_spec(self) -> ImageSpec | None:
        """The processing of images; None for a text model."""
        return None if self.media_spec is None else self.media_spec.image

    @cached_property
    def identity(self) -> str:
        """Digest of everything that determines ids, labels and grids. Cached documents are valid while it is equal."""
        spec = self.media_spec
        if spec is not None and spec.video.sampling != "random":
            spec = dataclasses.replace(spec, video=dataclasses.replace(spec.video, seed=0))
        labels = (self._terminator_label, self._end_of_text)
        settings = (_VERSION, self.template, self.policy, spec, self.media_tokens, labels, self.limits)
        digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
        digest.update(self._tokenizer.to_str().encode())
        return digest.hexdigest()

    def encode(self, conversation: Conversation) -> Document:
        """Encode a conversation with its answers, or a plain text, for training. The length is not limited.

        With loss_on "each_turn", only the last message is trained: see `split`. The last label of a plain text is the
        first of eos_token_ids. `rejected` is ignored. Raises SampleError, also if no token carries loss.
        """
        document = self._encode(conversation, self.template.render(conversation, self.policy))
        if not document.num_loss_tokens:
            what = (
                "the last message" if self.policy.loss_on == "each_turn" else "at least one assistant message"
            )
            detail = f"no token carries loss: {what} must be trained"
            raise SampleError(conversation.sample_id, "no loss token", detail)
        return document

    def split(self, conversation: Conversation) -> list[Conversation]:
        """The conversations to encode: the sample itself, or with loss_on "each_turn" one for each trained answer.

        Each of these ends with the answer. If there are several, their sample_id names the message. Raises SampleError
        if no answer is trained.
        """
        messages = conversation.messages
        if self.policy.loss_on != "each_turn" or messages[0].role == "text":
            return [conversation]
        require_answer(conversation)
        ends = [
            number
            for number, message in enumerate(messages, 1)
            if message.role == "assistant" and message.trained
        ]
        if not ends:
            detail = "no token carries loss: at least one assistant message must be trained"
            raise SampleError(conversation.sample_id, "no loss token", detail)
        parts = []
        for end in ends:
            name = conversation.sample_id + (f" (message {end})" if len(ends) > 1 else "")
            part = dataclasses.replace(conversation, messages=messages[:end], sample_id=name)
            if end < len(messages):
                part = dataclasses.replace(part, rejected=(), rejected_prompt=())
            parts.append(part)
        return parts

    def encode_prompt(self, conversation: Conversation) -> Document:
        """Encode a conversation up to the assistant's next answer, for generation; no labels. Raises SampleError."""
        return self._encode(conversation, self.template.render_prompt(conversation, self.policy))

    def segments(self, conversation: Conversation, cut: int = 0) -> list[Segment]:
        """The segments of the document that `encode` returns; their token counts add up to its length.

        A token that extends over two segments counts for the first. cut: the index of a token; the segment of text that
        contains it is split before it. Raises SampleError.
        """
        self._refuse_reserved(conversation)
        found: list[Segment] = []
        done = 0
        for spans, _ in text_runs(self.template.render(conversation, self.policy)):
            texts = [self._text_of(span, conversation.sample_id) for span in spans]
            encoding = self._tokenizer.encode("".join(texts), add_special_tokens=False)
            starts = np.cumsum([0, *map(len, texts[:-1])])
            first = np.asarray([start for start, _ in encoding.offsets], np.int64)
            tokens = np.bincount(np.searchsorted(starts, first, "right") - 1, minlength=len(texts))
            seen = 0
            for span, text, start, count in zip(spans, texts, starts.tolist(), tokens.tolist(), strict=True):
                before, seen = seen, seen + count
                if isinstance(span, MediaSpan):
                    assert self.media_spec is not None
                    count += measure(span.part, self.media_spec, conversation.sample_id).tokens - 1
                    found.append(Segment("media", text, count, False, span.part))
                elif 0 < (left := cut - done) < count:
                    place = int(first[before + left]) - start
                    found.append(Segment(span.kind, text[:place], left, span.trained))
                    found.append(Segment(span.kind, text[place:], count - left, span.trained))
                else:
                    found.append(Segment(span.kind, text, count, span.trained))
                done += count
        return found

    def _encode(self, conversation: Conversation, spans: Iterable[Span]) -> Document:
        self._refuse_reserved(conversation)
        sample_id = conversation.sample_id
        plain = conversation.messages[0].role == "text"
        ids: list[Ids] = []
        targets: list[Ids] = []
        media: list[Media] = []
        length = 0
        for string, trained in text_runs(spans):
            text = "".join([self._text_of(span, sample_id) for span in string])
            if trained:
                chunk, target = self._answer(text, string, sample_id)
                if not plain:
                    target[-1] = self._terminator_label
            else:
                chunk = self._place(self._ids(text, sample_id), string, length, media, sample_id)
                target = np.full(len(chunk), IGNORE, np.int32)
            ids.append(chunk)
            targets.append(target)
            length += len(chunk)
        end = self._end_of_text if plain and conversation.messages[0].trained else IGNORE
        targets.append(np.full(1, end, np.int32))
        input_ids = np.concatenate(ids)
        self.limits.check_ids(input_ids, sample_id)
        return Document(input_ids, np.concatenate(targets)[1:], tuple(media), sample_id)

    def _ids(self, text: str, sample_id: str) -> Ids:
        # As a batch of one: only for batches, the tokenizer can omit offsets, which take a third of the time.
        with _no_panic(sample_id):
            encoding = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]
        return np.asarray(encoding.ids, np.int32)

    def _answer(self, text: str, spans: list[Span], sample_id: str) -> tuple[Ids, Ids]:
        """(ids, labels before the shift) of an answer that is at least partly trained."""
        if all([isinstance(span, TextSpan) and span.trained for span in spans]):
            ids = self._ids(text, sample_id)
            return ids, ids.copy()
        with _no_panic(sample_id):
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids = np.asarray(encoding.ids, np.int32)
        return ids, np.where(trained_tokens(spans, encoding.offsets), ids, np.int32(IGNORE))

    def _text_of(self, span: Span, sample_id: str) -> str:
        if isinstance(span, TextSpan):
            return span.text
        kind = "image" if isinstance(span.part, ImagePart) else "video"
        if self.media_spec is None:
            detail = f"the model does not take images or videos, but the sample has {source_name(span.part.source)}"
            raise SampleError(sample_id, "not supported", detail)
        return self._marks[kind]

    def _place(self, ids: Ids, spans: list[Span], offset: int, media: list[Media], sample_id: str) -> Ids:
        """Repeat each placeholder for all tokens of its image or video, which is appended to `media`."""
        parts = [span.part for span in spans if isinstance(span, MediaSpan)]
        if not parts:
            return ids
        assert self.media_tokens is not None and self.media_spec is not None
        counts = np.ones(len(ids), np.int64)
        taken = sum(item.tokens for item in media)
        kinds = (self.media_tokens.image_placeholder, self.media_tokens.video_placeholder)
        places = np.flatnonzero(np.isin(ids, kinds))
        if len(places) != len(parts):
            raise CheckpointError(
                f"config.json names {' and '.join(map(str, sorted(set(kinds))))} as the ids of image and video "
                "placeholders, but text has these tokens, too"
            )
        for index, part in zip(places, parts, strict=True):
            item = dataclasses.replace(measure(part, self.media_spec, sample_id), start=offset + int(index))
            media.append(item)
            counts[index] = item.tokens
            offset += item.tokens - 1
            taken += item.tokens
            if taken > MAX_TOKENS:  # before they are in memory
                detail = f"its images and videos take more than {MAX_TOKENS:,} tokens, the limit"
                raise SampleError(sample_id, "too long", detail)
        return np.repeat(ids, counts)

    def _refuse_reserved(self, conversation: Conversation) -> None:
        for name, messages in (
            ("message", conversation.messages),
            ("rejected message", conversation.rejected),
            ("message before the rejected answer", conversation.rejected_prompt),
        ):
            for number, message in enumerate(messages, 1):
                # The parts are joined, as for the tokenizer: a token must not result from two parts either.
                found = self._reserved.search("".join(map(_words, message.parts)))
                if found:
                    raise _reserved_error(conversation, f"{name} {number} ({message.role})", found.group())
        if conversation.tools:
            found = self._reserved.search(json.dumps(conversation.tools, ensure_ascii=False))
            if found:
                raise _reserved_error(conversation, "the list of tools", found.group())


@contextmanager
def _no_panic(sample_id: str) -> Iterator[None]:
    """Turn a panic of the tokenizer, which is written in Rust, into a SampleError. It is not an Exception subclass, and
    would end the process."""
    try:
        yield
    except BaseException as error:
        if not is_panic(error):
            raise
        detail = f"the tokenizer failed, which it does for texts of gigabytes: {clipped(str(error), 200)}"
        raise SampleError(sample_id, "not tokenized", detail) from None


def _reserved_error(conversation: Conversation, where: str, token: str) -> SampleError:
    detail = f"{where} contains {token}, which only the template may write"
    return SampleError(conversation.sample_id, "reserved token", detail)


def _words(part: Part) -> str:
    if isinstance(part, ImagePart | VideoPart):
        return ""
    return f"{part.name} {part.arguments}" if isinstance(part, ToolCallPart) else part.text


def _single_id(tokenizer: Tokenizer, text: str) -> int:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if len(ids) != 1 or tokenizer.id_to_token(ids[0]) != text:
        raise CheckpointError(f"the tokenizer has no token {text}, which ERNIE's chat templates need")
    return int(ids[0])


def _media_token(tokenizer: Tokenizer, token_id: int) -> str:
    token = tokenizer.id_to_token(token_id)
    if token is None or tokenizer.encode(token, add_special_tokens=False).ids != [token_id]:
        raise CheckpointError(
            f"config.json names {token_id} as the id of a media token, but the tokenizer does not"
        )
    return str(token)


def make_encoder(
    directory: str | Path,
    data: DataConfig | None = None,
    *,
    seed: int = 0,
    vocab_size: int | None = None,
    max_positions: int | None = None,
) -> Encoder:
    """Make the encoder of a checkpoint from its tokenizer, chat template, stop tokens and media settings.

    data: the `data` section of a run, None for its defaults; seed: for data.video_sampling "random"; vocab_size,
    max_positions: of a model that a run has enlarged. Reads local files only. The only code of the checkpoint that runs
    is its Jinja chat template, see `erniekit.data.chat.render`. Raises CheckpointError, DataError, ConfigError.
    """
    directory = Path(directory)
    require_model(directory)
    data = data or DataConfig.without_sources()
    media_tokens = media_token_ids(directory)
    tokenizer = load_tokenizer(directory)
    backend = tokenizer.backend_tokenizer
    return Encoder(
        backend,
        resolve_template(data.template, tokenizer, is_vl=media_tokens is not None),
        eos_token_ids=stop_token_ids(directory, tokenizer.eos_token_id),
        policy=LossPolicy(data.reasoning, data.loss_on),
        media_tokens=media_tokens,
        media_spec=None if media_tokens is None else MediaSpec.from_checkpoint(directory, data, seed),
        limits=read_limits(directory, backend, vocab_size, max_positions),
    )


def run_encoder(config: Config) -> Encoder:
    """Make the encoder for the model of a run. Raises as `make_encoder` and `enlarged_limits`."""
    vocab_size, max_positions = enlarged_limits(config.model)
    return make_encoder(
        config.model.directory,
        config.data,
        seed=config.train.seed,
        vocab_size=vocab_size,
        max_positions=max_positions,
    )
