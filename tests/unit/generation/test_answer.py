from __future__ import annotations

import json
from itertools import groupby
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from erniekit.data.chat.conversation import Conversation, Message, Part, ReasoningPart, TextPart, ToolCallPart
from erniekit.data.chat.families import TEMPLATES
from erniekit.data.chat.template import Template, TextSpan
from erniekit.generation.answer import Answer, AnswerParser, Delta, ToolCall, parse_answer

ALL = tuple(TEMPLATES)
FRAMED = ("ernie", "ernie_vl")
CALL = '<tool_call>\n{"name": "time", "arguments": {"zone": "Asia/北京"}}\n</tool_call>\n'
TIME = ToolCall("time", {"zone": "Asia/北京"}, '{"name": "time", "arguments": {"zone": "Asia/北京"}}', None)
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<response>", "</response>")

# Texts with pieces of tags in them, but not with whole ones: nothing says then where they end.
BEGINNINGS = [
    "<",
    "</",
    "<t",
    "<thin",
    "</think",
    "<tool_cal",
    "</tool_cal",
    "</respons",
    "<|end_of",
    "<|im_en",
]
pieces = st.sampled_from([*BEGINNINGS, ">", "{", "a", "ok.", "北京", "😀", " ", "\n"])
texts = st.lists(pieces | st.text(max_size=3), max_size=12).map("".join)
scalars = st.none() | st.booleans() | st.integers(-99, 99) | texts
calls = st.builds(
    lambda name, arguments, pretty: ToolCallPart(
        name, json.dumps(arguments, ensure_ascii=False, indent=1 if pretty else None)
    ),
    st.text('abc_é"\\', min_size=1, max_size=5),
    st.dictionaries(
        texts, scalars | st.lists(scalars, max_size=2) | st.just({"deep": ["</tool_call>"]}), max_size=3
    ),
    st.booleans(),
)


def _generated(template: Template, parts: tuple[Part, ...]) -> str:
    """What the model writes to give this answer, after the generation prompt."""
    question = Message("user", (TextPart("q"),), False)
    chat = Conversation((question, Message("assistant", parts, True)), "f:1")
    prompt = template.render_prompt(Conversation((question,), "f:1"))
    whole = _text(template.render(chat))
    assert whole.startswith(_text(prompt))
    return whole.removeprefix(_text(prompt))


def _text(spans: list[Any]) -> str:
    assert all(isinstance(span, TextSpan) for span in spans)
    return "".join(span.text for span in spans)


def _joined(deltas: list[Delta]) -> Answer:
    assert all(bool(delta.text) != (delta.call is not None) for delta in deltas)
    assert all((delta.kind == "tool_call") == (delta.call is not None) for delta in deltas)
    return Answer(
        "".join(delta.text for delta in deltas if delta.kind == "reasoning"),
        "".join(delta.text for delta in deltas if delta.kind == "text"),
        tuple(delta.call for delta in deltas if delta.call is not None),
    )


def _streamed(template: Template, text: str, cuts: list[int]) -> list[Delta]:
    stream, deltas, start = AnswerParser(template), [], 0
    for end in [*sorted(cut for cut in cuts if cut < len(text)), len(text)]:
        deltas += stream.feed(text[start:end])
        start = end
    deltas += stream.finish()
    assert stream.feed("x") == stream.finish() == []
    return deltas


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(ALL),
    texts,
    texts,
    st.lists(calls, max_size=3),
    st.lists(st.integers(1, 120), max_size=30),
)
def test_what_a_template_writes_is_read_again(
    name: str, reasoning: str, text: str, made: list[ToolCallPart], cuts: list[int]
) -> None:
    template = TEMPLATES[name]
    assume(not any(tag in reasoning + text for tag in (*TAGS, template.terminator)))
    thoughts = (ReasoningPart(reasoning),) if reasoning and template.thinking == "on" else ()
    said = (TextPart(text),) if text else ()
    assume(said or made)
    if name not in FRAMED:
        # A text of nothing but white space beside a tag is white space beside a tag.
        assume(not text or text.strip())
    generated = _generated(template, (*thoughts, *said, *made))
    answer = parse_answer(generated, template)
    assert answer.reasoning == (reasoning.strip("\n") if thoughts and reasoning.strip() else "")
    beside_tags = name not in FRAMED or made
    assert answer.text == text if not beside_tags else answer.text.strip("\n") == text.strip("\n")
    assert [(call.name, call.arguments, call.error) for call in answer.tool_calls] == [
        (part.name, json.loads(part.arguments), None) for part in made
    ]
    assert _joined(_streamed(template, generated, cuts)) == answer


@pytest.mark.slow
@settings(deadline=None, max_examples=500)
@given(
    st.sampled_from(ALL),
    st.lists(pieces | st.sampled_from(TAGS) | st.just(CALL) | st.text(max_size=2), max_size=20).map("".join),
    st.lists(st.integers(1, 120), max_size=30),
)
def test_whatever_a_model_writes_is_read_and_streamed_alike(name: str, text: str, cuts: list[int]) -> None:
    template = TEMPLATES[name]
    answer = parse_answer(text, template)
    deltas = _streamed(template, text, cuts)
    assert _joined(deltas) == answer
    one_by_one = _streamed(template, text, list(range(1, len(text))))
    assert _joined(one_by_one) == answer
    tags = ("<tool_call>", "</tool_call>", template.terminator)
    thinking = () if template.thinking == "none" else ("<think>", "</think>")
    shown = {"reasoning": thinking, "text": (*tags, *thinking)}
    for kind, run in groupby(one_by_one, key=lambda delta: delta.kind):
        joined = "".join(delta.text for delta in run)
        assert not any(mark in joined for mark in shown.get(kind, ()))
    for call in answer.tool_calls:
        assert (call.arguments is None) == (call.error is not None)


@pytest.mark.parametrize("name", ALL)
def test_no_piece_of_a_tag_is_ever_shown(name: str) -> None:
    template = TEMPLATES[name]
    thoughts = (ReasoningPart("so 1 < 2"),) if template.thinking == "on" else ()
    generated = _generated(template, (*thoughts, TextPart("if a < b:\n</p>"), ToolCallPart("f", '{"a": 1}')))
    stream, shown = AnswerParser(template), ""
    for character in generated:
        for delta in stream.feed(character):
            shown += delta.text
            assert "</t" not in shown and "<t" not in shown and "<r" not in shown and "<|" not in shown
    assert [delta.text for delta in stream.finish()] == []
    assert shown == ("so 1 < 2" if thoughts else "") + "if a < b:\n</p>"


def test_text_comes_at_once_and_calls_when_they_are_whole() -> None:
    stream = AnswerParser(TEMPLATES["ernie_vl_thinking"])
    assert stream.feed("\n hm") == [Delta("reasoning", " hm")]
    assert stream.feed("\n\n</th") == []
    assert stream.feed("ink>\n") == []
    assert stream.feed("\nIt is") == [Delta("text", "It is")]
    assert stream.feed(" 7.\n") == [Delta("text", " 7.")]
    assert stream.feed(CALL[:-13]) == []
    assert stream.feed(CALL[-13:]) == [Delta("tool_call", call=TIME)]
    assert stream.feed("\n") == stream.finish() == []


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("ernie", "7\n", Answer("", "7\n", ())),
        ("ernie", "\n 7", Answer("", "\n 7", ())),
        ("ernie", "<think>\nhm\n</think>\n\n7", Answer("", "<think>\nhm\n</think>\n\n7", ())),
        ("ernie", "See:\n\n" + CALL + CALL, Answer("", "See:", (TIME, TIME))),
        ("ernie_vl", CALL.strip() + "\nand\n", Answer("", "and\n", (TIME,))),
        ("ernie_vl", "a\n" + CALL + "b", Answer("", "a\nb", (TIME,))),
        ("ernie_vl", "7<|end_of_sentence|>User: more", Answer("", "7", ())),
        ("ernie_vl_thinking", "hm\n</think>\n\n7", Answer("hm", "7", ())),
        ("ernie_vl_thinking", "\n</think>\n\n7", Answer("", "7", ())),
        ("ernie_vl_thinking", "hm</think>" + CALL, Answer("hm", "", (TIME,))),
        ("ernie_vl_thinking", "a <tool_call> b\n</think>7", Answer("a <tool_call> b", "7", ())),
        ("ernie_vl_thinking", "hm\n7\n", Answer("hm\n7", "", ())),
        ("ernie_vl_thinking", "hm<|end_of_sentence|></think>7", Answer("hm", "", ())),
        ("ernie_thinking", "hm\n</think>\n<response>\n7\n</response>\n<|im_end|>", Answer("hm", "7", ())),
        ("ernie_thinking", "hm\n</think>\n<response>\n7\n", Answer("hm", "7\n", ())),
        ("ernie_thinking", "hm\n</think>\n7", Answer("hm", "7", ())),
        ("ernie_thinking", "hm</think><response>a</response> \n" + CALL, Answer("hm", "a", (TIME,))),
        ("ernie_thinking", "hm</think><response>a" + CALL + "</response>", Answer("hm", "a", (TIME,))),
        ("ernie_thinking", "", Answer("", "", ())),
        # A think block that begins an answer is reasoning; a tag that belongs nowhere is left out.
        ("ernie_vl", "<think>\nhm\n</think>\n\n7", Answer("hm", "7", ())),
        ("ernie_vl", "\n<think>hm", Answer("hm", "", ())),
        ("ernie_vl", "</think>\n\n7", Answer("", "7", ())),
        ("ernie_vl", "7 <think> 8</think>", Answer("", "7 \n 8", ())),
        ("ernie_vl", CALL + "<think>so", Answer("", "so", (TIME,))),
        ("ernie_vl_thinking", "<think>\nhm\n</think>\n\n7", Answer("hm", "7", ())),
        ("ernie_vl_thinking", "a<think>b</think>7</think>8", Answer("a\nb", "7\n8", ())),
        ("ernie_thinking", "a</think><think>b</think><response>7</response>", Answer("a\nb", "7", ())),
        ("ernie", "7\n</tool_call>", Answer("", "7", ())),
    ],
)
def test_answers(name: str, text: str, expected: Answer) -> None:
    assert parse_answer(text, TEMPLATES[name]) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a <", Answer("", "a <", ())),
        ("a </", Answer("", "a </", ())),
        ("a\n<tool_ca", Answer("", "a", ())),
        ("a\n<tool_ca<|end_of_sentence|>", Answer("", "a\n<tool_ca", ())),
        ("a<|end_of_sen", Answer("", "a", ())),
        ("a\n<tool_call>", Answer("", "a", (ToolCall("", None, "", "cut off"),))),
        ('a<tool_call>\n{"name": "f', Answer("", "a", (ToolCall("", None, '{"name": "f', "cut off"),))),
        ("<tool_call>\n{}\n</tool_", Answer("", "", (ToolCall("", None, "{}", "cut off"),))),
        (CALL + "<tool_call>\n{", Answer("", "", (TIME, ToolCall("", None, "{", "cut off")))),
    ],
)
def test_answers_that_are_cut_off(text: str, expected: Answer) -> None:
    assert parse_answer(text, TEMPLATES["ernie"]) == expected


@pytest.mark.parametrize(
    ("raw", "name", "error"),
    [
        ("", "", "not valid JSON: Expecting value (character 1)"),
        ("get the time", "", "not valid JSON: Expecting value (character 1)"),
        ('{"name": "f", "arguments": {"a": }}', "", "not valid JSON: Expecting value (character 34)"),
        ('{"name": "f", "arguments": {"a": 1}', "", "not valid JSON: Expecting ',' delimiter (character 36)"),
        ('{"name": "f}', "", "not valid JSON: Unterminated string starting at (character 10)"),
        ('{"name": "f", "arguments": {}} {}', "", "not valid JSON: Extra data (character 32)"),
        ('{"name": "f", "arguments": {"a": NaN}}', "", "NaN is not JSON"),
        ('["f", {}]', "", 'it is not an object with "name" and "arguments"'),
        ('{"arguments": {}}', "", 'it has no "name"'),
        ('{"name": 3, "arguments": {}}', "", 'it has no "name"'),
        ('{"name": "f", "arguments": [1]}', "f", 'its "arguments" are not an object'),
        (
            '{"name": "f", "arguments": "{"}',
            "f",
            "not valid JSON: Expecting property name enclosed in double quotes",
        ),
        ('{"name": "f", "arguments": {"a": "\\ud800"}}', "", "half a surrogate pair"),
        ("[" * 100_000, "", "nested too deeply"),
        ('{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}", "", "Exceeds the limit"),
    ],
)
@pytest.mark.parametrize("frame", ["<tool_call>\n{}\n</tool_call>\n", "<tool_call>{}</tool_call>"])
def test_malformed_calls_are_reported_and_do_not_raise(frame: str, raw: str, name: str, error: str) -> None:
    (call,) = parse_answer("a\n" + frame.replace("{}", raw), TEMPLATES["ernie"]).tool_calls
    assert (call.name, call.arguments, call.raw) == (name, None, raw)
    assert call.error is not None and call.error.startswith(error)


@pytest.mark.parametrize(
    ("raw", "arguments"),
    [
        ('{"name": "f"}', {}),
        ('{"arguments": "{\\"a\\": 1}", "name": "f"}', {"a": 1}),
        ('{"name": "f", "arguments": null}', {}),
        ('{"name": "f", "arguments": " "}', {}),
        (' {"name": "f",\n "arguments": {"a": "</tool_call>"}}\n', {"a": "</tool_call>"}),
    ],
)
def test_calls_in_other_ways(raw: str, arguments: dict[str, Any]) -> None:
    answer = parse_answer(f"<tool_call>{raw}</tool_call> then", TEMPLATES["ernie"])
    assert answer == Answer("", " then", (ToolCall("f", arguments, raw.strip(), None),))


def test_what_follows_a_call_that_is_no_json_is_text() -> None:
    answer = parse_answer('<tool_call>\n{"name": "f}\n</tool_call>\nSorry.\n' + CALL, TEMPLATES["ernie"])
    assert (answer.text, [call.name for call in answer.tool_calls]) == ("Sorry.", ["", "time"])
