from typing import Any

import pytest

from erniekit.data.chat.conversation import ImagePart, SampleError, TextPart
from tests.unit.data.formats.parsing import outline, parse
from tests.unit.data.formats.test_sharegpt import chat


def said(role: str, content: Any, **keys: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **keys}


ASKED = [said("user", "q")]
GOOD, BAD = said("assistant", "good"), said("assistant", "bad")
# The same pair in every form.
FORMS: list[dict[str, Any]] = [
    {"messages": ASKED, "chosen": "good", "rejected": "bad"},
    {"messages": ASKED, "chosen": GOOD, "rejected": BAD},
    {"messages": ASKED, "chosen": [GOOD], "rejected": [BAD]},
    {"messages": ASKED, "chosen": [*ASKED, GOOD], "rejected": [*ASKED, BAD]},
    {"messages": [*ASKED, GOOD], "chosen": [*ASKED, GOOD], "rejected": [*ASKED, BAD], "prompt": "q"},
    {"chosen": [*ASKED, GOOD], "rejected": [*ASKED, BAD], "score_chosen": 7},
    {"messages": [*ASKED, GOOD], "rejected_response": "bad"},
    {"messages": [*ASKED, GOOD], "rejected_messages": [*ASKED, BAD]},
    chat(("human", "q"), chosen={"from": "gpt", "value": "good"}, rejected={"from": "gpt", "value": "bad"}),
    chat(("human", "q"), chosen="good", rejected=[{"from": "gpt", "value": "bad"}]),
    chat(("human", "q"), chosen=GOOD, rejected=BAD),
    {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
    {"instruction": "q", "output": None, "chosen": "good", "rejected": "bad"},
    {"question": "q", "chosen": "good", "rejected": "bad"},
    {"prompt": "q", "chosen": "good", "rejected": "bad"},
    {"prompt": ASKED, "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": "q", "chosen": [*ASKED, GOOD], "rejected": [*ASKED, BAD]},
    {"query": "q", "chosen": "good", "rejected": "bad"},
    {"query": "q", "response": "good", "rejected_response": "bad"},
    {"src": ["q"], "tgt": [], "response": [["bad"], ["good"]], "sort": [0, 1]},
]


@pytest.mark.parametrize("record", FORMS)
def test_a_pair_in_every_form(record: Any) -> None:
    found = parse(record)
    assert outline(found.messages) == [("user", "q", False), ("assistant", "good", True)]
    assert outline(found.rejected) == [("assistant", "bad", True)]


def test_of_the_prompt_nothing_carries_loss() -> None:
    prompt = [said("system", "s"), said("user", "one"), said("assistant", "1", loss=True), *ASKED]
    found = parse({"messages": prompt, "chosen": "good", "rejected": "bad"})
    assert [message.trained for message in found.messages] == [False] * 4 + [True]
    whole = parse({"chosen": [*prompt, GOOD], "rejected": [*prompt, BAD]})
    assert whole == found


def test_answers_of_several_turns_with_calls() -> None:
    call = said("assistant", None, tool_calls=[{"name": "f", "arguments": {}}])
    found = parse(
        {
            "messages": ASKED,
            "chosen": [call, said("tool", "x"), GOOD],
            "rejected": [BAD, said("user", "no"), said("assistant", "sorry", loss=False)],
            "tools": [{"name": "f"}],
        }
    )
    assert outline(found.messages) == [
        ("user", "q", False),
        ("assistant", "f({})", True),
        ("tool", "x", False),
        ("assistant", "good", True),
    ]
    assert outline(found.rejected) == [
        ("assistant", "bad", True),
        ("user", "no", False),
        ("assistant", "sorry", False),
    ]
    assert len(found.tools) == 1


def test_images_of_the_prompt() -> None:
    asked = [said("user", "<image>q")]
    expected = (ImagePart("/data/1.png"), TextPart("q"))
    for record in (
        {"messages": asked, "chosen": "good", "rejected": "bad"},
        {"chosen": [*asked, GOOD], "rejected": [*asked, BAD]},
        {"messages": [*asked, GOOD], "rejected_messages": [*asked, BAD]},
        chat(("human", "<image>q"), chosen="good", rejected="<image>"),
        {"instruction": "<image>q", "chosen": "good", "rejected": "bad"},
    ):
        assert parse({**record, "images": ["1.png"]}).messages[0].parts == expected
        with pytest.raises(SampleError, match=r"1 <image> mark.* 2 image") as caught:
            parse({**record, "images": ["1.png", "2.png"]})
        assert caught.value.reason == "images do not match"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"messages": ASKED, "chosen": "good"}, '"chosen" without "rejected"'),
    ({"messages": ASKED, "rejected": "bad", "chosen": None}, '"rejected" without "chosen"'),
    ({"instruction": "q", "output": "a", "chosen": "good"}, '"chosen" without "rejected"'),
    ({"messages": ASKED, "chosen": 3, "rejected": "bad"}, '"chosen" must be a list .* not a number'),
    ({"messages": ASKED, "chosen": [], "rejected": "bad"}, '"chosen" must be a list of at least one'),
    ({"messages": ASKED, "chosen": "", "rejected": "bad"}, "\"chosen\": the assistant's answer is empty"),
    ({"messages": ASKED, "chosen": {"content": "x"}, "rejected": "bad"}, '"chosen": no role'),
    ({"messages": ASKED, "chosen": ["x"], "rejected": "bad"}, '"chosen", message 1 must be an object'),
    ({"messages": ASKED, "chosen": "bad", "rejected": "bad"}, "are the same"),
    ({"chosen": [*ASKED, BAD], "rejected": [*ASKED, BAD]}, "are the same"),
    ({"messages": [*ASKED, GOOD], "chosen": "good", "rejected": "bad"}, "the last is the assistant's"),
    ({"messages": ASKED, "chosen": [GOOD, *ASKED], "rejected": "bad"}, "chosen answer must start and end with an"),
    ({"chosen": [said("user", "p"), GOOD], "rejected": [*ASKED, BAD]}, "must be a user's or a tool's; there is none"),
    ({"chosen": [*ASKED, GOOD], "rejected": ASKED}, "rejected answer must start and end"),
    ({"messages": [said("user", "p")], "chosen": [*ASKED, GOOD], "rejected": [*ASKED, BAD]}, "does not start with"),
    ({"messages": ASKED, "chosen": GOOD, "rejected": {**BAD, "loss": False}}, "rejected answer must carry loss"),
    ({"messages": ASKED, "rejected_response": "bad"}, "the last message must be the chosen answer"),
    ({"messages": ASKED, "chosen": [GOOD, said("system", "s"), GOOD], "rejected": "bad"}, "system message can only"),
    ({"messages": ASKED, "chosen": GOOD, "rejected": [BAD, said("system", "s"), BAD]}, "system message can only"),
    (chat(("human", "q"), chosen={"from": "bing", "value": "x"}, rejected="bad"), '"chosen": unknown role'),
]  # fmt: skip


@pytest.mark.parametrize(("record", "message"), WRONG)
def test_wrong_pairs_say_what_is_wrong(record: Any, message: str) -> None:
    with pytest.raises(SampleError, match=message) as caught:
        parse(record)
    assert str(caught.value).startswith("f.jsonl:7: ")
