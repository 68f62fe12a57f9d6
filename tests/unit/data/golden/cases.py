"""Conversations whose rendered text, ids and labels are stored, a file for each template."""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.config import DataConfig
from erniekit.data.chat.conversation import Conversation, ReasoningPart, ToolCallPart
from erniekit.data.chat.loss_policy import DEFAULT_POLICY, LossPolicy
from erniekit.data.chat.template import MediaSpan, Span
from erniekit.data.encode.document import IGNORE, Document
from erniekit.data.encode.encoder import Encoder, make_encoder
from tests.unit.data.helpers import chat, encoded, make_checkpoint, noise, video

DIRECTORY = Path(__file__).parent
# Template, and the kind of checkpoint that has it.
KINDS = {
    "ernie": "text",
    "ernie_thinking": "text_thinking",
    "ernie_vl": "vl",
    "ernie_vl_thinking": "thinking",
}
# The smallest sizes, so that the files stay short: an image of 2 x 2 tokens, a video of one for two frames.
_SIZES = {"min_pixels": 3136, "max_pixels": 3136, "video_min_pixels": 784, "video_max_pixels": 784}
_IMAGE = encoded(noise(56, 56))
_VIDEO = video(28, 28, 3)
_TOOLS = [
    {"type": "function", "function": {"name": "count", "about": '北京 "two"'}},
]
_COUNT = ToolCallPart("count", '{"in": "北京"}')
_DIGITS = ToolCallPart("count", "{ }")


@dataclass(frozen=True)
class Case:
    """A conversation and how it is encoded."""

    name: str
    conversation: Conversation
    policy: LossPolicy = DEFAULT_POLICY


def _history() -> Conversation:
    return chat(
        ("system", "The answer is a city."),
        ("user", "what is the capital?"),
        ("assistant", "Paris"),
        ("user", " 北京 ?\n"),
        ("assistant", "seven", False),
        ("user", "in the picture?"),
        ("assistant", " a cat\n"),
    )


def _tool_loop(reasoned: bool, media: bool) -> Conversation:
    return chat(
        ("system", "The answer is a digit."),
        ("user", "what is in the picture?"),
        ("assistant", [*_thought("two apples", reasoned), "The answer:", _COUNT, _DIGITS]),
        ("tool", ["two ", _IMAGE, "apples"] if media else "two apples"),
        ("tool", '{"is": [0, 1]}'),
        ("assistant", [*_thought("ten minus three", reasoned), "seven"]),
        tools=_TOOLS,
    )


def _two_turns(reasoned: bool) -> Conversation:
    return chat(
        ("user", "One"),
        ("assistant", [*_thought("plus", reasoned), "two"]),
        ("user", "is"),
        ("assistant", [*_thought("minus", reasoned), "seven"]),
    )


def _thought(text: str, reasoned: bool) -> list[Any]:
    return [ReasoningPart(text)] if reasoned else []


def _media() -> Conversation:
    return chat(
        ("user", [_IMAGE, "what is in the picture?", _VIDEO]),
        ("assistant", "a small cat"),
        ("user", ["One ", _VIDEO, _IMAGE, _IMAGE]),
        ("assistant", "two green apples"),
    )


def _policies(name: str, conversation: Conversation) -> list[Case]:
    return [
        Case(f"{name}, reasoning {way}", conversation, LossPolicy(reasoning=way))
        for way in ("train", "mask", "drop")
    ]


def cases(template: str) -> list[Case]:
    """What is stored for a template."""
    thinking, vl = template.endswith("thinking"), "vl" in template
    question = chat(("user", "what is one plus two?"), ("assistant", "Paris is seven."))
    loop = _tool_loop(thinking, vl)
    found = [
        Case("question", question),
        Case("history", _history()),
        Case("plain text", chat(("text", "The capital of France is Paris.\n今天天气很好"))),
        Case(
            "preference, of which the chosen answer is trained",
            dataclasses.replace(question, rejected=chat(("assistant", "ten")).messages),
        ),
        Case("answer of nothing but a call", chat(("user", "ten"), ("assistant", _COUNT))),
        Case("all turns", _two_turns(thinking)),
        Case("last turn", _two_turns(thinking), LossPolicy(loss_on="last_turn")),
        Case("each turn", _two_turns(thinking), LossPolicy(loss_on="each_turn")),
        Case("tool between users", chat(*_interrupted())),
    ]
    found += _policies("tools", loop) if thinking else [Case("tools", loop)]
    inline = chat(("user", "q"), ("assistant", "<think>\none plus two\n</think>\n\nthree"))
    if thinking:
        found += _policies("reasoning in the text", inline)
        found.append(Case("empty block", chat(("user", "q"), ("assistant", "<think>\n\n</think>\n\nthree"))))
    else:
        found.append(Case("reasoning in the text, dropped", inline, LossPolicy(reasoning="drop")))
    if vl:
        found.append(Case("pictures and videos", _media()))
    return found


def _interrupted() -> list[tuple[str, Any]]:
    return [
        ("user", "One"),
        ("assistant", ["two", _COUNT]),
        ("tool", "three"),
        ("user", "four"),
        ("assistant", "seven"),
    ]


def render(template: str, directory: Path) -> str:
    """The content of a template's file; directory: where a checkpoint can be made."""
    checkpoint = make_checkpoint(directory, KINDS[template])
    entries = []
    for case in cases(template):
        encoder = make_encoder(
            checkpoint, DataConfig.without_sources(**_SIZES, **dataclasses.asdict(case.policy))
        )
        documents = [_document(encoder, part) for part in encoder.split(case.conversation)]
        head = {"name": case.name, "policy": f"{case.policy.reasoning}, {case.policy.loss_on}"}
        fields = [f'"{key}": {json.dumps(value)}' for key, value in head.items()]
        entries.append("{" + ", ".join(fields) + ', "documents": [\n' + ",\n".join(documents) + "\n]}")
    return "[\n" + ",\n".join(entries) + "\n]\n"


def _document(encoder: Encoder, conversation: Conversation) -> str:
    document = encoder.encode(conversation)
    lines = _text(encoder.template.render(conversation, encoder.policy)).split("\n")
    text = ",\n".join("    " + json.dumps(line, ensure_ascii=False) for line in lines)
    ids = json.dumps(document.input_ids.tolist())
    media = [[*item.grid_thw, item.start, item.tokens, list(item.frames)] for item in document.media]
    return (
        f'  {{"sample_id": {json.dumps(document.sample_id)},\n   "text": [\n{text}],\n   "ids": {ids},\n'
        f'   "media": {json.dumps(media)},\n   "mask": "{_mask(document)}"}}'
    )


def _text(spans: list[Span]) -> str:
    """Trained text stands between ⟦ and ⟧."""
    pieces = [
        (False, "(picture or video)") if isinstance(span, MediaSpan) else (span.trained, span.text)
        for span in spans
    ]
    text = ""
    for trained, group in itertools.groupby((piece for piece in pieces if piece[1]), lambda piece: piece[0]):
        joined = "".join(piece[1] for piece in group)
        text += f"⟦{joined}⟧" if trained else joined
    return text


def _mask(document: Document) -> str:
    """Runs of positions without label (.), with the next token as label (#), with another, to stop at (E)."""
    following = np.append(document.input_ids[1:], IGNORE - 1)
    signs = np.where(document.labels == following, "#", np.where(document.labels == IGNORE, ".", "E"))
    return " ".join(f"{sign}{len(list(run))}" for sign, run in itertools.groupby(signs.tolist()))
