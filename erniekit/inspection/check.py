"""Checks data files: reads every sample and collects counts, lengths and errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from erniekit.config.choices import OnLong
from erniekit.data.chat.conversation import Conversation, SampleError
from erniekit.data.chat.template import require_answer
from erniekit.data.encode.encoder import Encoder
from erniekit.data.encode.samples import TOO_LONG, Pairs, SampleReader
from erniekit.data.files.reader import BadLine, Record, read_records
from erniekit.data.formats import detect, parse_record
from erniekit.data.formats.fields.columns import Columns
from erniekit.data.media.access import NO_URLS, MediaAccess
from erniekit.data.media.item import MediaSpec, decode, measure
from erniekit.data.media.patches import ImageSpec
from erniekit.data.media.video import VideoSpec
from erniekit.display.progress import OnProgress, no_progress
from erniekit.errors import DataError
from erniekit.inspection.check_report import CheckReport, ErrorList, FileReport, Unit
from erniekit.inspection.contents import all_characters, media_parts

# For files that are checked without a checkpoint.
DEFAULT_MEDIA = MediaSpec(ImageSpec(), VideoSpec())


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """A data file.

    format: as in `parse_record`; is_eval: it belongs to data.eval; columns: as in `read_records`.
    """

    path: Path
    format: str
    is_eval: bool = False
    columns: Columns = ()


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """Settings of a check.

    encoder: of the model that will see the data; None: lengths are in characters, and encoding errors are not found.
    max_length, on_long: as in the config section `data`. access: which media may be read. limit: number of samples to
    check. decode: decode images and videos in full, not only their headers. most_errors: errors kept by name (None:
    all); every error is counted. pairs: as in `SampleReader`.
    """

    encoder: Encoder | None
    max_length: int
    on_long: OnLong = "error"
    access: MediaAccess = NO_URLS
    limit: int | None = None
    decode: bool = False
    most_errors: int | None = 20
    pairs: Pairs = "chosen"


def check_files(
    files: Sequence[CheckedFile], options: CheckOptions, on_progress: OnProgress = no_progress
) -> CheckReport:
    """Checks all samples of the files. Errors are collected in the report, not raised.

    A damaged file is read up to the damage; the check continues with the next file. Memory: a few hundred bytes per
    sample.
    """
    unit: Unit = "characters" if options.encoder is None else "tokens"
    report = CheckReport(unit, options.max_length, ErrorList(options.most_errors))
    checker = _Checker(options, report)
    sizes = [_size(file.path) for file in files]
    before = 0
    for file, size in zip(files, sizes, strict=True):
        found = FileReport(file.path, file.is_eval)
        report.files.append(found)
        for read in checker.read(file, found):
            on_progress("checking", before + read, sum(sizes))
        before += size
        if options.limit is not None and report.samples >= options.limit:
            break
    return report


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # reported when the file is read
        return 0


class _Checker:
    """Checks records, one by one."""

    def __init__(self, options: CheckOptions, report: CheckReport) -> None:
        self._options = options
        self._report = report
        self._reader: SampleReader | None = None
        if options.encoder is not None:
            self._reader = SampleReader(
                options.encoder, options.max_length, options.on_long, options.access, options.pairs
            )

    def read(self, file: CheckedFile, found: FileReport) -> Iterator[int]:
        """Checks a file; yields the number of its bytes read so far after each record."""
        try:
            for record in read_records(file.path, columns=file.columns):
                if self._options.limit is not None and self._report.samples >= self._options.limit:
                    return
                found.samples += 1
                errors = self._check(record, file, found)
                for error in errors:
                    self._report.errors.add(error)
                found.failed += bool(errors)
                yield record.bytes_read
        except DataError as error:
            found.unreadable = str(error)

    def _check(self, record: Record | BadLine, file: CheckedFile, found: FileReport) -> list[SampleError]:
        """The errors of a record."""
        if isinstance(record, BadLine):
            return [record.error]
        format = detect(record.value) if file.format == "auto" else file.format
        if format is not None:
            found.formats[format] += 1
        try:
            conversation = parse_record(
                record.value,
                format=file.format,
                base_dir=file.path.parent,
                sample_id=record.sample_id,
                access=self._options.access,
            )
            self._report.add_conversation(conversation)
            if self._reader is not None:
                self._reader.require_pair(conversation, record, file.format)
                return self._encode(self._reader, conversation, file.is_eval)
            self._measure(conversation)
        except SampleError as error:
            return [error]
        return []

    def _measure(self, conversation: Conversation) -> None:
        """Adds lengths in characters."""
        sample_id = conversation.sample_id
        if conversation.messages[0].role != "text":
            require_answer(conversation)
        media = [measure(part, DEFAULT_MEDIA, sample_id) for part in media_parts(conversation)]
        if self._options.decode:
            decode(media, sample_id, DEFAULT_MEDIA)
        vision = sum(item.tokens for item in media)
        self._report.vision_tokens += vision
        self._report.add_length(all_characters(conversation), vision)

    def _encode(self, reader: SampleReader, conversation: Conversation, is_eval: bool) -> list[SampleError]:
        """Adds lengths in tokens; returns what training would refuse."""
        sample = reader.encode(conversation)
        errors = list(sample.errors)
        if self._options.decode:
            for document in sample.documents:
                decode(document.media, document.sample_id, reader.encoder.media_spec)
        for tokens, vision in sample.whole:
            self._report.add_length(tokens - vision, vision)
        if not is_eval:
            for document in sample.documents:
                self._report.add_document(document)
        self._report.trimmed += sample.trimmed
        self._report.untrained_reasoning += sample.untrained_reasoning
        if reader.pairs == "chosen":  # each_turn, the remedy, does not apply to pairs
            self._report.calls_as_history += sample.calls_as_history
        if self._options.on_long == "drop":
            kept = [error for error in errors if error.reason != TOO_LONG]
            self._report.dropped += len(kept) < len(errors)
            return kept
        return errors
