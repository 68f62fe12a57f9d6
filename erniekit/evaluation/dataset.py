"""Held-out samples: chats as a prompt and the answer that is expected, and plain texts, both with a loss."""

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
from erniekit.data.encode.account import ErrorBudget
from erniekit.data.encode.document import Document
from erniekit.data.encode.encoder import Encoder
from erniekit.data.files.find import Log, expand
from erniekit.data.files.reader import BadLine, Record, read_records
from erniekit.data.files.reservoir import draw
from erniekit.data.formats import parse_record
from erniekit.data.formats.fields.columns import Columns
from erniekit.errors import ConfigError, DataError
from erniekit.evaluation.metrics.choose import References, choose
from erniekit.generation.answer import parse_answer
from erniekit.inspection.run import eval_files

Modality = Literal["text", "images", "videos"]


@dataclass(frozen=True)
class EvalFile:
    """A data file.

    source: the name that its figures are reported under; format: as in `parse_record`; columns: as in `read_records`.
    """

    path: Path
    source: str
    format: str = "auto"
    columns: Columns = ()


@dataclass(frozen=True)
class LossSample:
    """A chat or text, encoded with its labels."""

    sample_id: str
    source: str
    whole: Document

    @property
    def modality(self) -> Modality:
        """What it holds: "videos" if there is any, else "images" if there is any."""
        if any(item.is_video for item in self.whole.media):
            return "videos"
        return "images" if self.whole.media else "text"


@dataclass(frozen=True)
class EvalSample(LossSample):
    """A chat: `prompt` up to its last answer, which is `expected` as the model would write it, without its end token.

    In `prompt_text` media are `<image>` and `<video>`. tools: what the chat offers, as in `Conversation`.
    """

    prompt: Document
    prompt_text: str
    expected: str
    tools: tuple[dict[str, Any], ...] = ()


class EvalDataset:
    """The samples of data files, read and encoded anew each time they are gone through, so that none is kept.

    answers: chats become EvalSamples, and their last message must be the assistant's; without, only their loss is
    wanted. Plain texts are LossSamples always. limit: the first that can be used. budget: takes those that cannot.
    Going through them raises SampleError as `budget` says, DataError where a file cannot be read or is empty.
    """

    def __init__(
        self,
        files: Sequence[EvalFile],
        encoder: Encoder,
        *,
        answers: bool = True,
        limit: int | None = None,
        budget: ErrorBudget | None = None,
        allow_urls: bool = False,
    ) -> None:
        self.files = tuple(files)
        self.encoder = encoder
        self.answers = answers
        self.limit = limit
        self.budget = budget or ErrorBudget("raise", 0)
        self.allow_urls = allow_urls

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
        """Chats from all over the files, in their order: the same ones whenever the data is the same.

        Only those are encoded. Records that are no chats, and cannot be read or answered, are passed over, so that
        fewer may come out; those that are drawn and cannot be encoded are told to the budget.
        """
        found = []
        for file, conversation in draw(self._chats(), count, seed=0):
            try:
                found.append(_question(conversation, self._encode(conversation), file.source, self.encoder))
            except SampleError as error:
                self.budget.spend(error)
        return found

    def _chats(self) -> Iterator[tuple[EvalFile, Conversation]]:
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
            allow_urls=self.allow_urls,
        )

    def _encode(self, conversation: Conversation) -> Document:
        document = self.encoder.encode(conversation)
        self.encoder.limits.check_positions(document)
        return document

    def _sample(self, conversation: Conversation, source: str) -> LossSample:
        # First: it checks that the last message is an answer.
        whole = self._encode(conversation)
        if not self.answers or conversation.messages[0].role == "text":
            return LossSample(conversation.sample_id, source, whole)
        return _question(conversation, whole, source, self.encoder)


def find_files(
    named: Sequence[str], data: DataConfig | None, format: str | None = None, log: Log | None = None
) -> list[EvalFile]:
    """The files that entries name; without any, those of the configuration's data.eval. A source is an entry.

    data: of a run, None without one; format: in place of the configuration's; say: as in `expand`. Raises DataError
    for an entry that means no file, ConfigError where there is none.
    """
    sources = [SourceConfig(path=name) for name in named]
    if data is None:
        data = DataConfig(train=sources)
    if not sources and not data.eval:
        raise ConfigError("data.eval is empty: there are no held-out samples; name files with --data")
    return [
        EvalFile(file.path, source.path, file.format, file.columns)
        for source in sources or data.eval
        for file in eval_files(data.model_copy(update={"eval": [source]}), format, log)
    ]


def load_samples(
    files: Sequence[str | Path], encoder: Encoder, *, format: str = "auto", limit: int | None = None
) -> list[EvalSample]:
    """The first `limit` chats of data files (also directories and patterns); plain texts are passed over.

    Raises DataError where a file cannot be read or is empty, SampleError for the first chat that is wrong.
    """
    found = [EvalFile(path, str(file), format) for file in files for path in expand([file])]
    chats = (sample for sample in EvalDataset(found, encoder) if isinstance(sample, EvalSample))
    return list(islice(chats, limit))


@dataclass
class Plan:
    """What an evaluation will do. answers: samples to be answered; metrics: in the order in which they are told."""

    samples: int = 0
    answers: int = 0
    metrics: tuple[str, ...] = ()
    references: dict[str, References] = field(default_factory=dict)


def make_plan(samples: Iterable[LossSample], template: Template, metrics: Collection[str]) -> Plan:
    """Goes through the samples once. metrics: as in `choose`. Raises DataError when there are none."""
    plan = Plan()
    for sample in samples:
        plan.samples += 1
        if isinstance(sample, EvalSample):
            plan.answers += 1
            references = plan.references.setdefault(sample.source, References())
            references.add(parse_answer(sample.expected, template), bool(sample.tools))
    if not plan.samples:
        raise DataError("there are no samples that can be evaluated")
    plan.metrics = choose(metrics, plan.references.values())
    return plan


def _question(conversation: Conversation, whole: Document, source: str, encoder: Encoder) -> EvalSample:
    question = dataclasses.replace(conversation, messages=conversation.messages[:-1])
    template, policy = encoder.template, encoder.policy
    prompt_text = _text(template.render_prompt(question, policy))
    expected = _text(template.render(conversation, policy)).removeprefix(prompt_text)
    return EvalSample(
        conversation.sample_id,
        source,
        whole,
        prompt=encoder.encode_prompt(question),
        prompt_text=prompt_text,
        expected=expected.removesuffix(template.terminator),
        tools=conversation.tools,
    )


def _text(spans: Iterable[Span]) -> str:
    return "".join(span.text if isinstance(span, TextSpan) else _mark(span) for span in spans)


def _mark(span: MediaSpan) -> str:
    return "<image>" if isinstance(span.part, ImagePart) else "<video>"
