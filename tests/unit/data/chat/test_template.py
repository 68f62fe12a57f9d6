from typing import Any

import pytest

from erniekit.data.chat.conversation import (
    Conversation,
    ReasoningPart,
    SampleError,
    TextPart,
    ToolCallPart,
    VideoPart,
)
from erniekit.data.chat.families import TEMPLATES
from erniekit.data.chat.loss_policy import LossPolicy
from tests.unit.data.chat.spans import TOOLS, shown
from tests.unit.data.helpers import chat

BOS, END = "<|begin_of_sentence|>", "<|end_of_sentence|>"
PNG = b"image"
CLIP = VideoPart("/clip.mp4")
TOOL_LIST = '[{"type": "function", "function": {"name": "time", "description": "北京 time"}}]'
CALL = ToolCallPart("time", '{"zone": "Asia/北京"}')
CALL_TEXT = '<tool_call>\n{"name": "time", "arguments": {"zone": "Asia/北京"}}\n</tool_call>\n'
ALL = tuple(TEMPLATES)


TWO_TURNS = chat(
    ("system", "be brief"),
    ("user", [PNG, "q"]),
    ("assistant", "a"),
    ("user", ["r", PNG, CLIP, PNG, CLIP]),
    ("assistant", "b"),
)
TOOL_LOOP = chat(
    ("system", "s"),
    ("user", "old"),
    ("assistant", [ReasoningPart("before"), "older"]),
    ("user", "q"),
    ("assistant", [ReasoningPart("which?"), "wait", CALL, ToolCallPart('a"b', "{}")]),
    ("tool", "12:00"),
    ("tool", '{"x": 1}'),
    ("assistant", [ReasoningPart("so"), "noon"]),
    tools=TOOLS,
)
UNREASONED = Conversation(
    tuple(
        chat((m.role, [p for p in m.parts if not isinstance(p, ReasoningPart)])).messages[0]
        for m in TOOL_LOOP.messages
    ),
    "f:1",
    TOOLS,
)


def test_ernie_text() -> None:
    found = shown(
        "ernie", chat(("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"))
    )
    assert found == f"{BOS}s\nUser: q\nAssistant: [a{END}]User: r\nAssistant: [b{END}]"


def test_ernie_vl_counts_media_and_marks_the_last_answer_as_not_thinking() -> None:
    assert shown("ernie_vl", TWO_TURNS) == (
        f"{BOS}be brief\nUser: Picture 1:(image)q\nAssistant: [a{END}]"
        "User: rPicture 2:(image)Video 1:(video)Picture 3:(image)Video 2:(video)"
        f"\nAssistant: <think>\n\n</think>\n\n[b{END}]"
    )


def test_ernie_vl_thinking_trains_reasoning_and_closes_an_empty_block_untrained() -> None:
    with_reasoning = chat(("user", "q"), ("assistant", [ReasoningPart("\nhm\n"), "a"]))
    assert shown("ernie_vl_thinking", with_reasoning) == (
        f"{BOS}User: q\nAssistant: \n<think>\n[hm\n</think>\n\na{END}]"
    )
    assert shown("ernie_vl_thinking", chat(("user", "q"), ("assistant", "a"))) == (
        f"{BOS}User: q\nAssistant: \n<think>\n\n</think>\n\n[a{END}]"
    )


def test_ernie_thinking() -> None:
    settings = "<global_setting>\nthink_mode=True\n</global_setting><|im_end|>\n\n"
    turns = [("user", "q"), ("assistant", "a"), ("user", "r")]
    opening = f"<|im_start|>system\n{settings}<|im_start|>user\nq<|im_end|>\n\n"
    history = "<|im_start|>assistant\n[<response>\na\n</response>\n<|im_end|>]\n\n"
    question = "<|im_start|>user\nr<|im_end|>\n\n<|im_start|>assistant\n<think>\n"
    assert shown("ernie_thinking", chat(*turns, ("assistant", [ReasoningPart("hm"), "b"]))) == (
        f"{opening}{history}{question}[hm\n</think>\n<response>\nb\n</response>\n<|im_end|>]"
    )
    assert shown("ernie_thinking", chat(*turns, ("assistant", "b"))) == (
        f"{opening}{history}{question}\n</think>\n[<response>\nb\n</response>\n<|im_end|>]"
    )
    prompt = (opening + history + question).replace("[", "").replace("]", "")
    assert shown("ernie_thinking", chat(*turns), prompt=True) == prompt
    assert shown("ernie_thinking", chat(("system", "s"), *turns), prompt=True).startswith(
        f"<|im_start|>system\n<system_setting>\ns\n</system_setting>\n\n{settings}<|im_start|>user\nq"
    )


def test_tools_in_the_text_frame() -> None:
    assert shown("ernie", UNREASONED) == (
        f"{BOS}\n<tool_list>\n{TOOL_LIST}\n</tool_list>\ns\nUser: old\nAssistant: [older{END}]"
        f'User: q\nAssistant: [wait{CALL_TEXT}<tool_call>\n{{"name": "a\\"b", "arguments": {{}}}}\n</tool_call>\n{END}]'
        "User: <tool_output>\n12:00\n</tool_output>\n"
        f'<tool_output>\n{{"x": 1}}\n</tool_output>\n\nAssistant: [noon{END}]'
    )


def test_tools_in_the_vl_frame() -> None:
    calls = f'{CALL_TEXT}<tool_call>\n{{"name": "a\\"b", "arguments": {{}}}}\n</tool_call>\n'
    opening = f"{BOS}\n<tool_list>\n{TOOL_LIST}\n</tool_list>\ns\nUser: old\nAssistant: [older{END}]User: q"
    results = 'User: <tool_output>\n12:00\n</tool_output>\n<tool_output>\n{"x": 1}\n</tool_output>\n'
    assert shown("ernie_vl", UNREASONED) == (
        f"{opening}\nAssistant: [wait{calls}{END}]{results}\nAssistant: <think>\n\n</think>\n\n[noon{END}]"
    )
    assert shown("ernie_vl_thinking", TOOL_LOOP) == (
        f"{opening}\nAssistant: \n<think>\n[which?\n</think>\n\nwait{calls}{END}]"
        f"{results}\nAssistant: \n<think>\n[so\n</think>\n\nnoon{END}]"
    )


def test_tools_of_ernie_thinking() -> None:
    assert shown("ernie_thinking", TOOL_LOOP) == (
        "<|im_start|>system\n<system_setting>\ns\n</system_setting>\n\n"
        "<global_setting>\nthink_mode=True\n</global_setting>"
        f"\n\n<tool_list>\n{TOOL_LIST}\n</tool_list><|im_end|>\n\n"
        "<|im_start|>user\nold<|im_end|>\n\n"
        "<|im_start|>assistant\n[<response>\nolder\n</response>\n<|im_end|>]\n\n"
        "<|im_start|>user\nq<|im_end|>\n\n"
        f"<|im_start|>assistant\n<think>\n[which?\n</think>\n<response>\nwait\n</response>\n\n{CALL_TEXT}"
        '\n<tool_call>\n{"name": "a\\"b", "arguments": {}}\n</tool_call>\n<|im_end|>]\n\n'
        "<|im_start|>user\n<tool_response>\n12:00\n</tool_response>\n"
        '<tool_response>\n{"x": 1}\n</tool_response><|im_end|>\n\n'
        "<|im_start|>assistant\n<think>\n[so\n</think>\n<response>\nnoon\n</response>\n<|im_end|>]"
    )


def test_a_call_without_words_has_no_answer_block() -> None:
    turns = chat(("user", "q"), ("assistant", [CALL]), ("tool", "noon"), ("user", "r"), ("assistant", [CALL]))
    found = shown("ernie_thinking", turns)
    assert "<response>" not in found
    assert f"<|im_start|>assistant\n[\n{CALL_TEXT}<|im_end|>]" in found
    # The result of a tool that a user's message follows has a turn of its own.
    assert "</tool_response><|im_end|>\n\n<|im_start|>user\nr<|im_end|>" in found
    assert "</tool_output>\n\nUser: r\nAssistant: [<tool_call>" in shown("ernie", turns)


def test_results_of_tools_may_hold_images() -> None:
    turns = chat(("user", [PNG, "q"]), ("assistant", [CALL]), ("tool", ["see ", PNG]), ("assistant", "a"))
    assert "<tool_output>\nsee Picture 2:(image)\n</tool_output>\n" in shown("ernie_vl", turns)


@pytest.mark.parametrize("name", ["ernie_vl_thinking", "ernie_thinking"])
def test_policies_of_reasoning(name: str) -> None:
    template = TEMPLATES[name]
    marks = str.maketrans("", "", "[]")
    trained = shown(name, TOOL_LOOP)
    masked = shown(name, TOOL_LOOP, policy=LossPolicy(reasoning="mask"))
    assert masked.translate(marks) == trained.translate(marks)
    assert f"which?{template.end_of_reasoning}[" in masked
    assert f"so{template.end_of_reasoning}[" in masked
    dropped = shown(name, TOOL_LOOP, policy=LossPolicy(reasoning="drop"))
    assert "which?" not in dropped
    assert dropped.count(f"<think>\n{template.end_of_reasoning}[") == 2
    assert dropped == shown(name, UNREASONED)


@pytest.mark.parametrize("name", ["ernie", "ernie_vl"])
def test_dropped_reasoning_needs_no_place(name: str) -> None:
    drop = LossPolicy(reasoning="drop")
    plain = shown(name, chat(("user", "q"), ("assistant", "a")))
    for answer in ([ReasoningPart("hm"), "a"], "<think>hm</think>a"):
        assert shown(name, chat(("user", "q"), ("assistant", answer)), policy=drop) == plain


def test_what_carries_loss() -> None:
    turns = chat(
        ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", ["b", CALL]), ("tool", "t"),
        ("assistant", "c"),
    )  # fmt: skip
    history = f"{BOS}User: q\nAssistant: a{END}User: r\nAssistant: "
    result = "User: <tool_output>\nt\n</tool_output>\n\nAssistant: "
    assert shown("ernie", turns, policy=LossPolicy(loss_on="last_turn")) == (
        f"{history}[b{CALL_TEXT}{END}]{result}[c{END}]"
    )
    assert shown("ernie", turns, policy=LossPolicy(loss_on="each_turn")) == (
        f"{history}b{CALL_TEXT}{END}{result}[c{END}]"
    )
    off = Conversation((*turns.messages[:5], *chat(("assistant", "c", False)).messages), "f:1")
    assert shown("ernie", off, policy=LossPolicy(loss_on="last_turn")).endswith(f"{result}c{END}")


def test_only_the_assistant_carries_loss() -> None:
    turns = chat(("system", "s", True), ("user", "q", True), ("tool", "t", True), ("assistant", "a"))
    for name in ALL:
        assert shown(name, turns).count("[") == 1


@pytest.mark.parametrize(
    "answer", ["<think>hm</think>a", "<think>\nhm\n</think>\n\na", "\n<think>\nhm\n</think>\na"]
)
def test_a_think_block_in_the_answer_is_reasoning(answer: str) -> None:
    assert shown("ernie_vl_thinking", chat(("user", "q"), ("assistant", answer))) == (
        f"{BOS}User: q\nAssistant: \n<think>\n[hm\n</think>\n\na{END}]"
    )


def test_history_keeps_no_reasoning() -> None:
    turns = [
        ("user", "q"),
        ("assistant", [ReasoningPart("hm"), "a"]),
        ("user", "r"),
        ("assistant", "<think>x</think>b"),
    ]
    assert shown("ernie_vl_thinking", chat(*turns)) == (
        f"{BOS}User: q\nAssistant: [a{END}]User: r\nAssistant: \n<think>\n[x\n</think>\n\nb{END}]"
    )


@pytest.mark.parametrize("block", ["<think>\n\n</think>\n\n", "<think></think>", "<think> \n \n</think>"])
def test_an_empty_block_in_the_answer_is_neither_doubled_nor_trained(block: str) -> None:
    turns = chat(("user", "q"), ("assistant", f"{block}a"))
    assert shown("ernie_vl", turns) == f"{BOS}User: q\nAssistant: <think>\n\n</think>\n\n[a{END}]"
    assert shown("ernie_vl_thinking", turns) == f"{BOS}User: q\nAssistant: \n<think>\n\n</think>\n\n[a{END}]"


def test_text_is_neither_stripped_nor_rewritten() -> None:
    text = "  <think>| a | b |\n|---|---|\n <tool_call>\t"
    call = ToolCallPart("f", '{ "a" :\t1}')
    for name in ALL:
        turns = chat(("user", text), ("assistant", [text, call]), ("tool", text), ("assistant", text))
        found = shown(name, turns)
        assert found.count(text) == 4
        assert '"arguments": { "a" :\t1}}' in found


def test_messages_switched_off_are_context() -> None:
    turns = chat(("user", "q"), ("assistant", "a", False), ("user", "r"), ("assistant", "b"))
    assert shown("ernie", turns) == f"{BOS}User: q\nAssistant: a{END}User: r\nAssistant: [b{END}]"


def test_prompts_end_where_the_answer_begins() -> None:
    turns = chat(("user", "q"), ("assistant", "a"), ("user", ["r", PNG]))
    history = f"{BOS}User: q\nAssistant: a{END}User: rPicture 1:(image)"
    assert (
        shown("ernie", turns, prompt=True)
        == f"{BOS}User: q\nAssistant: a{END}User: rPicture 1:(image)\nAssistant: "
    )
    assert shown("ernie_vl", turns, prompt=True) == f"{history}\nAssistant: <think>\n\n</think>\n\n"
    assert shown("ernie_vl_thinking", turns, prompt=True) == f"{history}\nAssistant: \n<think>\n"


@pytest.mark.parametrize("name", ["ernie_vl_thinking", "ernie_thinking"])
def test_a_prompt_amid_a_tool_loop_keeps_the_reasoning_that_led_there(name: str) -> None:
    question = Conversation(TOOL_LOOP.messages[:-1], "f:1", TOOLS)
    prompt = shown(name, question, prompt=True)
    assert "which?" in prompt
    assert "before" not in prompt
    whole = shown(name, TOOL_LOOP).translate(str.maketrans("", "", "[]"))
    assert whole.startswith(prompt.translate(str.maketrans("", "", "[]")))


def test_plain_text_is_all_trained() -> None:
    text = " one\n<think>two\n"
    for name in ALL:
        begin = "" if name == "ernie_thinking" else BOS
        assert shown(name, chat(("text", text))) == f"{begin}[{text}]"


@pytest.mark.parametrize(
    ("name", "turns", "message"),
    [
        ("ernie", [("user", "q")], "the last must be the assistant's answer"),
        ("ernie_vl", [("assistant", "a"), ("user", "q")], "the chat ends with a user message"),
        ("ernie", [("user", "q"), ("assistant", [CALL]), ("tool", "t")], "ends with a tool message"),
        (
            "ernie",
            [("user", "q"), ("assistant", [ReasoningPart("hm"), "a"])],
            "template ernie does not support",
        ),
        (
            "ernie_vl",
            [("user", "q"), ("assistant", "<think>hm</think>a")],
            "template ernie_vl does not support",
        ),
        (
            "ernie_vl",
            [("user", "q"), ("assistant", [ReasoningPart("hm"), CALL]), ("tool", "t"), ("assistant", "a")],
            "an answer of the last turn has reasoning",
        ),
        ("ernie_vl", [("user", "q"), ("assistant", "<think>hm")], "has no </think>"),
        (
            "ernie_vl_thinking",
            [("user", "q"), ("assistant", [ReasoningPart("x"), "<think>hm</think>a"])],
            "has reasoning twice",
        ),
        ("ernie_thinking", [("user", [PNG]), ("assistant", "a")], "user message has an image"),
        ("ernie_thinking", [("user", [CLIP]), ("assistant", "a")], "user message has a video"),
        (
            "ernie_thinking",
            [("user", "q"), ("assistant", [CALL]), ("tool", [PNG]), ("assistant", "a")],
            "tool message has an image",
        ),
        ("ernie", [("user", "q"), ("system", "s"), ("assistant", "a")], "message 2: a system message can"),
        ("ernie", [("user", "q"), ("text", "s"), ("assistant", "a")], "message 2: a text message can"),
        ("ernie", [("text", "")], "the text is empty"),
    ],
)
def test_what_a_template_cannot_write(name: str, turns: Any, message: str) -> None:
    with pytest.raises(SampleError, match=f"^f:1: .*{message}"):
        shown(name, chat(*turns))


def test_masked_reasoning_in_a_text_has_no_place_where_it_is_plain_text() -> None:
    turns = chat(("user", "q"), ("assistant", "<think>hm</think>a"))
    assert "[<think>hm</think>a" in shown("ernie", turns)
    with pytest.raises(SampleError, match="template ernie does not support"):
        shown("ernie", turns, policy=LossPolicy(reasoning="mask"))


@pytest.mark.parametrize(
    ("last", "message"), [(("assistant", "a"), "an assistant message"), (("text", "t"), "plain text")]
)
def test_a_prompt_ends_with_a_question(last: tuple[str, str], message: str) -> None:
    with pytest.raises(SampleError, match=f"must not end with {message}"):
        shown("ernie", chat(("user", "q"), last), prompt=True)


@pytest.mark.parametrize("name", ALL)
def test_parts_without_loss_stand_in_the_answer_as_context(name: str) -> None:
    template = TEMPLATES[name]
    parts = [TextPart("Perhaps 5?", trained=False), TextPart(" It is 4.")]
    found = shown(name, chat(("user", "2+2?"), ("assistant", parts)))
    whole = shown(name, chat(("user", "2+2?"), ("assistant", "Perhaps 5? It is 4.")))
    assert found.replace("[", "").replace("]", "") == whole.replace("[", "").replace("]", "")
    before = f"[{template.answer[0]}]" if template.answer[0] else ""
    assert f"{before}Perhaps 5?[ It is 4.{template.answer[1]}{template.terminator}]" in found


def test_reasoning_without_loss_stands_there_as_context() -> None:
    parts = [ReasoningPart("hm", trained=False), TextPart("4")]
    found = shown("ernie_vl_thinking", chat(("user", "2+2?"), ("assistant", parts)))
    assert "hm\n</think>\n\n[" in found and "[hm" not in found
    inline = [TextPart("<think>hm</think>", trained=False), TextPart("4")]
    assert shown("ernie_vl_thinking", chat(("user", "2+2?"), ("assistant", inline))) == found
