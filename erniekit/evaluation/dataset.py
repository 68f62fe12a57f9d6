"""Eval samples: chats, as a prompt with the expected answer, and plain texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from erniekit.config import DataConfig, SourceConfig
from erniekit.data.chat.conversation import Conversation, ImagePart, SampleError
from erniekit.data.chat.template import MediaSpan, Span, Template, TextSpan
from erniekit.data.encode.document import Document
from erniekit.data.encode.encoder import Encoder
from erniekit.data.encode.pairs import encode_pair
from erniekit.data.encode.stats import ErrorBudget
from erniekit.data.files.find import Log, expand
from erniekit.data.files.reader import BadLine, Record, read_records
from erniekit.data.files.reservoir import reservoir_sample
from erniekit.data.formats import parse_record
from erniekit.data.formats.fields.columns import Columns
from erniekit.data.media.access import NO_URLS, MediaAccess
from erniekit.errors import ConfigError, DataError
from erniekit.evaluation.metrics.choose import References, choose
from erniekit.generation.answer import parse_answer
from erniekit.inspection.data_files import eval_files

Modality = Literal["text", "images", "videos"]


@dataclass(frozen=True)
class EvalFile:
    """A data file.

    source: its name in reports; format: as in `parse_record`; columns: as in `read_records`.
    """

    path: Path
    source: str
    format: str = "auto"
    columns: Columns = ()


@dataclass(frozen=True)
class LossSample:
    """A chat or plain text, encoded with labels.

    pair: a preference pair with both answers, None for other samples; `whole` has the chosen answer then.
    """

    sample_id: str
    source: str
    whole: Document
    pair: Document | None = field(default=None, kw_only=True)

    @property
    def modality(self) -> Modality:
        """The media of the sample: "videos" if there are any, else "images" if there are any, else "text"."""
        if any(item.is_video for item in self.whole.media):
            return "videos"
        return "images" if self.whole.media else "text"


@dataclass(frozen=True)
class EvalSample(LossSample):
    """A chat with its last answer split off.

    prompt: the chat without the last answer; prompt_spans: the same, as the template writes it; expected: the last
    answer as the model would write it, without the end token; tools: as in `Conversation`.
    """

    prompt: Document
    prompt_spans: tuple[Span, ...]
    expected: str
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def prompt_text(self) -> str:
        """The prompt, with `<image>` and `<video>` for media."""
        return _text(self.prompt_spans)


class EvalDataset:
    """The samples of data files. Each iteration reads and encodes them again, so that none is kept in memory.

    answers: chats are EvalSamples, and their last message must be the assistant's; otherwise they are LossSamples, as
    plain texts always are. limit: only the first usable samples. budget: counts samples that cannot be used.
    Iterating raises what `budget` raises, and DataError if a file cannot be read or is empty.
    """

    def __init__(
        self,
        files: Sequence[EvalFile],
        encoder: Encoder,
        *,
        answers: bool = True,
        limit: int | None = None,
        budget: ErrorBudget | None = None,
        access: MediaAccess = NO_URLS,
    ) -> None:
        self.files = tuple(files)
        self.encoder = encoder
        self.answers = answers
        self.limit = limit
        self.budget = budget or ErrorBudget("raise", 0)
        self.access = access

    def __iter__(self) -> Iterator[LossSample]:
        return islice(self._samples(), self.limit)

    def _samples(self) -> Iterator[LossSample]:
        for file, record in self._records():
            try:
                sample = self._sample(self._parse(file, record), file.source)
            except SampleError as error:
                self.budget.spend(error)
                continue
            yield sample

    def draw_chats(self, count: int) -> list[EvalSample]:
        """A random sample of `count` chats, in the order of the files; the same chats for the same data.

        Only drawn chats are encoded. Records that cannot be read or answered are skipped; drawn chats that cannot be
        encoded are reported to the budget. There may be fewer than `count`.
        """
        found = []
        for file, conversation in reservoir_sample(self._chats(), count, seed=0):
            try:
                found.append(
                    _with_answer(conversation, self._encode(conversation), file.source, self.encoder)
                )
            except SampleError as error:
                self.budget.spend(error)
        return found

    def _chats(self) -> Iterator[tuple[EvalFile, Conversation]]:
        """Chats that can be answered."""
        for file, record in self._records():
            try:
                conversation = self._parse(file, record)
            except SampleError:
                continue
            if conversation.messages[0].role != "text" and len(conversation.messages) > 1:
                yield file, conversation

    def _records(self) -> Iterator[tuple[EvalFile, Record | BadLine]]:
        return (
            (file, record) for file in self.files for record in read_records(file.path, columns=file.columns)
        )

    def _parse(self, file: EvalFile, record: Record | BadLine) -> Conversation:
        if isinstance(record, BadLine):
            raise record.error
        return parse_record(
            record.value,
            format=file.format,
            base_dir=file.path.parent,
            sample_id=record.sample_id,
            access=self.access,
        )

    def _encode(self, conversation: Conversation) -> Document:
        document = self.encoder.encode(conversation)
        self.encoder.limits.check_positions(document)
        return document

    def _sample(self, conversation: Conversation, source: str) -> LossSample:
        # Before the answer is split off: encoding checks that the last message is one.
        document = self._encode(conversation)
        pair = encode_pair(self.encoder, conversation) if conversation.rejected else None
        if pair is not None:
            self.encoder.limits.check_positions(pair)
        if not self.answers or conversation.messages[0].role == "text":
            return LossSample(conversation.sample_id, source, document, pair=pair)
        return dataclasses.replace(_with_answer(conversation, document, source, self.encoder), pair=pair)


def find_files(
    named: Sequence[str], data: DataConfig | None, format: str | None = None, log: Log | None = None
) -> list[EvalFile]:
    """The files of the named entries, or of data.eval if there are none. Each entry is a source.

    data: the config of a run, if there is one; format: replaces its format; log: as in `expand`. Raises DataError for
    an entry without files, ConfigError if there is no entry.
    """
    sources = [SourceConfig(path=name) for name in named]
    if data is None:
        data = DataConfig(train=sources)
    if not sources and not data.eval:
        raise ConfigError("data.eval is empty: there are no eval samples; name files with --data")
    return [
        EvalFile(file.path, source.path, file.format, file.columns)
        for source in sources or data.eval
        for file in eval_files(data.model_copy(update={"eval": [source]}), format, log)
    ]


def load_samples(
    files: Sequence[str | Path], encoder: Encoder, *, format: str = "auto", limit: int | None = None
) -> list[EvalSample]:
    """The first `limit` chats of data files, directories and patterns; plain texts are skipped.

    Raises DataError if a file cannot be read or is empty, SampleError for the first chat that cannot be used.
    """
    found = [EvalFile(path, str(file), format) for file in files for path in expand([file])]
    chats = (sample for sample in EvalDataset(found, encoder) if isinstance(sample, EvalSample))
    return list(islice(chats, limit))


@dataclass
class EvalPlan:
    """The work of an evaluation.

    samples: with a loss; pairs: preference pairs; answers: to generate; metrics: in display order.
    """

    samples: int = 0
    pairs: int = 0
    answers: int = 0
    metrics: tuple[str, ...] = ()
    references: dict[str, References] = field(default_factory=dict)


def make_plan(samples: Iterable[LossSample], template: Template, metrics: Collection[str]) -> EvalPlan:
    """Counts the samples, in one pass. metrics: as in `choose`. Raises DataError if there are no samples."""
    plan = EvalPlan()
    for sample in samples:
        plan.samples += 1
        plan.pairs += sample.pair is not None
        if isinstance(sample, EvalSample):
            plan.answers += 1
            references = plan.references.setdefault(sample.source, References())
            references.add(parse_answer(sample.expected, template), bool(sample.tools))
    if not plan.samples:
        raise DataError("there are no samples that can be evaluated")
    plan.metrics = choose(metrics, plan.references.values())
    return plan


def _with_answer(conversation: Conversation, document: Document, source: str, encoder: Encoder) -> EvalSample:
    question = dataclasses.replace(conversation, messages=conversation.messages[:-1])
    template, policy = encoder.template, encoder.policy
    prompt = tuple(template.render_prompt(question, policy))
    expected = _text(template.render(conversation, policy)).removeprefix(_text(prompt))
    return EvalSample(
        conversation.sample_id,
        source,
        document,
        prompt=encoder.encode_prompt(question),
        prompt_spans=prompt,
        expected=expected.removesuffix(template.terminator),
        tools=conversation.tools,
    )


def _text(spans: Iterable[Span]) -> str:
    return "".join(span.text if isinstance(span, TextSpan) else _mark(span) for span in spans)


def _mark(span: MediaSpan) -> str:
    return "<image>" if isinstance(span.part, ImagePart) else "<video>"
