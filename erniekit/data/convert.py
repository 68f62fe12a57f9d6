"""Converts data files of any format to format "messages", which can represent all other formats."""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erniekit.config.choices import OnError
from erniekit.data.chat.conversation import (
    Conversation,
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    Role,
    SampleError,
    TextPart,
    ToolCallPart,
)
from erniekit.data.files.reader import BadLine, read_records
from erniekit.data.formats import parse_record
from erniekit.data.formats.fields.markers import has_marks
from erniekit.data.formats.fields.media_options import options_of
from erniekit.data.media.access import NO_URLS, MediaAccess
from erniekit.data.media.images import is_url
from erniekit.errors import DataError
from erniekit.local_files import replacing

# Rewrites the path of an image or video for the output.
RewritePath = Callable[[str], str]


@dataclass
class ConvertReport:
    """The result of a conversion. written: number of records; errors: of the skipped samples, in order."""

    written: int = 0
    errors: list[SampleError] = field(default_factory=list)

    @property
    def skipped(self) -> Counter[str]:
        """The number of skipped samples by reason."""
        return Counter(error.reason for error in self.errors)


def convert(
    paths: Sequence[Path],
    output: Path,
    *,
    to: str = "messages",
    format: str = "auto",
    on_error: OnError = "raise",
    access: MediaAccess = NO_URLS,
) -> ConvertReport:
    """Write the samples of data files to one file of JSON lines.

    to: only "messages"; format: of the input, as in `parse_record`. Paths of media are rewritten relative to the
    output's directory, even if the files do not exist; embedded media become data: URIs. on_error: "raise" the first
    error of a sample, or "skip" the sample. The output only appears when it is complete. Raises DataError if a file
    cannot be read or written, and SampleError.
    """
    if to != "messages":
        raise DataError(f'cannot convert to format "{to}": only "messages" can represent every sample')
    target = os.path.realpath(output)
    if any(os.path.realpath(path) == target for path in paths):
        raise DataError(f"{output}: this is one of the input files; choose another output")
    directory = os.path.dirname(target)
    report = ConvertReport()
    try:
        with replacing(output) as file:
            for conversation in _conversations(paths, format, on_error, access, report):
                record = to_record(conversation, lambda path: _relative_to(directory, path))
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                report.written += 1
    except OSError as error:
        raise DataError(f"{output}: cannot be written: {error.strerror or error}") from error
    return report


def _conversations(
    paths: Sequence[Path],
    format: str,
    on_error: OnError,
    access: MediaAccess,
    report: ConvertReport,
) -> Iterator[Conversation]:
    for path in paths:
        for record in read_records(path):
            try:
                if isinstance(record, BadLine):
                    raise record.error
                yield parse_record(
                    record.value,
                    format=format,
                    base_dir=path.parent,
                    sample_id=record.sample_id,
                    access=access,
                )
            except SampleError as error:
                if on_error == "raise":
                    raise
                report.errors.append(error)


def _relative_to(directory: str, path: str) -> str:
    # The file itself is not resolved: the name of a link may be more readable than its target's.
    folder, name = os.path.split(path)
    return os.path.relpath(os.path.join(os.path.realpath(folder), name), directory)


def to_record(conversation: Conversation, rewrite_path: RewritePath = str) -> dict[str, Any]:
    """A Conversation as a JSON object of format "messages", or of format "text" for plain text.

    `parse_record` turns it into an equal Conversation. rewrite_path: applied to the paths of images and videos.
    """
    messages = conversation.messages
    if messages[0].role == "text":
        return {"text": "".join(part.text for part in messages[0].parts if isinstance(part, TextPart))}
    record: dict[str, Any] = {"tools": list(conversation.tools)} if conversation.tools else {}
    if not conversation.rejected:
        return {**record, "messages": [_message(message, rewrite_path) for message in messages]}
    # The chosen answer of a pair begins with the first trained message: the prompt has none.
    start = next(index for index, message in enumerate(messages) if message.trained)
    if conversation.rejected_prompt:
        prompt = [_message(message, rewrite_path, in_prompt=True) for message in conversation.rejected_prompt]
        record["rejected_prompt"] = prompt
    return {
        **record,
        "messages": [_message(message, rewrite_path, in_prompt=True) for message in messages[:start]],
        "chosen": [_message(message, rewrite_path) for message in messages[start:]],
        "rejected": [_message(message, rewrite_path) for message in conversation.rejected],
    }


def _message(message: Message, rewrite_path: RewritePath, in_prompt: bool = False) -> dict[str, Any]:
    entry: dict[str, Any] = {"role": message.role}
    parts = [part for part in message.parts if not isinstance(part, ToolCallPart)]
    thoughts = [part for part in parts if isinstance(part, ReasoningPart)]
    if thoughts and thoughts == parts[:1] and thoughts[0].trained:
        entry["reasoning_content"] = thoughts[0].text
        parts = parts[1:]
    entry["content"] = _content(message.role, parts, rewrite_path)
    calls = [_call(part) for part in message.parts if isinstance(part, ToolCallPart)]
    if calls:
        entry["tool_calls"] = calls
        entry["content"] = entry["content"] or None
    if message.role == "assistant" and not message.trained and not in_prompt:
        entry["loss"] = False
    return entry


def _content(role: Role, parts: Sequence[Part], rewrite_path: RewritePath) -> str | list[dict[str, Any]]:
    if len(parts) == 1 and isinstance(parts[0], TextPart):
        text = parts[0].text
        # In a user's string, a mark would be replaced by an image or video.
        if parts[0].trained and (role != "user" or not has_marks(text)):
            return text
    return [_part(part, rewrite_path) for part in parts]


def _part(part: Part, rewrite_path: RewritePath) -> dict[str, Any]:
    if isinstance(part, TextPart | ReasoningPart):
        kind = "text" if isinstance(part, TextPart) else "reasoning"
        return {"type": kind, kind: part.text} | ({} if part.trained else {"loss": False})
    assert not isinstance(part, ToolCallPart)
    if isinstance(part, ImagePart):
        return {"type": "image", "image": _source(part.source, rewrite_path), **options_of(part)}
    source: str | list[str] = (
        [_source(frame, rewrite_path) for frame in part.source]
        if isinstance(part.source, tuple)
        else _source(part.source, rewrite_path)
    )
    return {"type": "video", "video": source, **options_of(part)}


def _source(source: str | bytes, rewrite_path: RewritePath) -> str:
    if isinstance(source, bytes):
        return f"data:application/octet-stream;base64,{base64.b64encode(source).decode('ascii')}"
    return source if is_url(source) else rewrite_path(source)


def _call(part: ToolCallPart) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": part.name, "arguments": part.arguments}}
    return call if part.trained else {**call, "loss": False}
