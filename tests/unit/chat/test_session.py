from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from erniekit.chat.session import Chat, load_tools
from erniekit.checkpoint.weights import load_model
from erniekit.data.chat.conversation import (
    ImagePart,
    Message,
    ReasoningPart,
    SampleError,
    TextPart,
    ToolCallPart,
)
from erniekit.data.files.reader import Record, read_records
from erniekit.data.formats import parse_record
from erniekit.errors import DataError
from erniekit.generation.answer import Delta
from erniekit.generation.detokenizer import Detokenizer
from erniekit.generation.generate import Generator
from erniekit.generation.load import find_model
from erniekit.generation.sampling import Sampling
from erniekit.models.ernie import ErnieModel
from tests.unit.data.helpers import noise
from tests.unit.generation.helpers import make_model
from tests.unit.generation.scripted import END, INTERRUPT, TOOLS, Script, scripted_chat

BOS, TERMINATOR = "<|begin_of_sentence|>", "<|end_of_sentence|>"
CALL = '<tool_call>\n{"name": "time", "arguments": {"zone": "Asia"}}\n</tool_call>\n'
BROKEN = '<tool_call>\n{"name": "time", "arguments": {"zone": }}\n</tool_call>\n'


@pytest.fixture(scope="module")
def vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("chat") / "model", "vl")


@pytest.fixture(scope="module")
def model(vl: Path) -> ErnieModel:
    return load_model(vl)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("text") / "model", "dense")


def test_a_chat_goes_on_from_what_was_said(
    vl: Path, model: ErnieModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(vl, model, "ernie_vl", [f"seven{END}", f"One{TERMINATOR}User: more", "two"])
    chat = scripted_chat(monkeypatch, script)
    chat.set_system("Be brief.")
    shown: list[Delta] = []
    reply = chat.ask("Which digit?", shown.append)
    assert "".join(delta.text for delta in shown) == reply.answer.text == "seven"
    assert (reply.finish, reply.problem, reply.tokens) == ("stop", None, len(shown) + 1)
    assert reply.prompt_tokens > reply.tokens and reply.first_seconds >= 0 <= reply.seconds
    assert chat.ask("And now?", shown.append).answer.text == "One"
    # A model that does not end its answer was cut off, and that is no answer to learn from.
    assert chat.ask("And?", shown.append).finish == "length"
    opening = f"{BOS}Be brief.\nUser: Which digit?\nAssistant: "
    empty = "<think>\n\n</think>\n\n"
    assert script.prompts[0] == opening + empty
    assert script.prompts[1] == f"{opening}seven{TERMINATOR}User: And now?\nAssistant: {empty}"
    assert script.prompts[2].startswith(
        f"{opening}seven{TERMINATOR}User: And now?\nAssistant: One{TERMINATOR}"
    )
    assert [message.trained for message in chat.messages] == [False, True, False, True, False, False]
    assert all(TERMINATOR in sampling.stop for sampling in script.samplings)
    chat.reset()
    assert (chat.messages, chat.system) == ([], "Be brief.")


def test_reasoning_is_distinguished_and_not_sent_back(
    vl: Path, model: ErnieModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(
        vl, model, "ernie_vl_thinking", [f"So it is.\n</think>\n\nseven{END}", f"hm</think>two{END}"]
    )
    chat = scripted_chat(monkeypatch, script)
    shown: list[Delta] = []
    chat.ask("Which digit?", shown.append)
    kinds = [delta.kind for delta in shown]
    assert kinds == sorted(kinds) and set(kinds) == {"reasoning", "text"}
    assert chat.messages[1] == Message("assistant", (ReasoningPart("So it is."), TextPart("seven")), True)
    chat.ask("And?", shown.append)
    assert "So it is" not in script.prompts[1]
    assert "Assistant: seven" in script.prompts[1]


def test_tools_are_called_and_their_results_sent(
    vl: Path, model: ErnieModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = Script(vl, model, "ernie_vl", [f"Look:\n{CALL}{CALL}{END}", f"noon{END}", f"bye{END}"])
    chat = scripted_chat(monkeypatch, script, TOOLS)
    shown: list[Delta] = []
    reply = chat.ask("What time is it?", shown.append)
    assert [delta.call.arguments for delta in shown if delta.call] == [{"zone": "Asia"}] * 2
    assert [call.name for call in reply.answer.tool_calls] == ["time", "time"]
    call = ToolCallPart("time", '{"zone": "Asia"}')
    assert chat.messages[1] == Message("assistant", (TextPart("Look:"), call, call), True)
    assert chat.give_results(["12:00", '{"a": 1}'], shown.append).answer.text == "noon"
    assert f"<tool_list>\n{json.dumps(list(TOOLS))}\n</tool_list>" in script.prompts[0]
    results = '<tool_output>\n12:00\n</tool_output>\n<tool_output>\n{"a": 1}\n</tool_output>\n'
    assert script.prompts[1].partition(f"Look:{CALL}{CALL}{TERMINATOR}User: ")[2].startswith(results)
    # Results may also be left out: then they are empty, and the chat that is saved can be read.
    chat.messages = chat.messages[:2]
    with pytest.raises(ValueError, match="1 results for 2 calls"):
        chat.give_results(["12:00"], shown.append)
    assert chat.ask("Never mind.", shown.append).problem is None
    assert [message.role for message in chat.messages[2:]] == ["tool", "tool", "user", "assistant"]
    chat.save(tmp_path / "saved.jsonl")
    (saved,) = read_records(tmp_path / "saved.jsonl")
    assert isinstance(saved, Record)
    read = parse_record(saved.value, format="auto", base_dir=tmp_path, sample_id="x")
    assert read.messages == tuple(chat.messages)


def test_a_call_that_cannot_be_read_stays_as_text_and_is_not_trained(
    vl: Path, model: ErnieModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(
        vl, model, "ernie_vl", [f"Look:\n{BROKEN}{END}", f"x{CALL[:-15]}{END}", f"{CALL[:-15]}{END}"]
    )
    chat = scripted_chat(monkeypatch, script, TOOLS)
    reply = chat.ask("What time is it?", lambda delta: None)
    assert reply.problem is None and reply.answer.tool_calls[0].error is not None
    assert chat.messages[1] == Message("assistant", (TextPart(f"Look:{BROKEN}"),), False)
    chat.ask("And now?", lambda delta: None)
    assert BROKEN in script.prompts[1]
    assert chat.messages[3] == Message("assistant", (TextPart("x"),), False)
    assert chat.ask("And now?", lambda delta: None).problem == "the model gave no answer"


def test_an_interrupted_answer_is_kept_as_far_as_it_came(
    vl: Path, model: ErnieModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(vl, model, "ernie_vl", [f"One two{INTERRUPT}", INTERRUPT, f"three{END}"])
    chat = scripted_chat(monkeypatch, script)
    reply = chat.ask("Count", lambda delta: None)
    assert (reply.finish, reply.answer.text, reply.problem) == ("interrupted", "One two", None)
    assert chat.messages[1] == Message("assistant", (TextPart("One two"),), False)
    nothing = chat.ask("Go on", lambda delta: None)
    assert (nothing.finish, nothing.tokens, nothing.problem) == ("interrupted", 0, "the model gave no answer")
    assert len(chat.messages) == 2
    assert chat.ask("Go on", lambda delta: None).answer.text == "three"


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ((), "no answer"),
        (("<|IMAGE_START|>",), "no answer"),
        # Spelled out in tokens of text, which no token stands for.
        (("see <|IMAGE_", "START|>"), "contains <|IMAGE_START|>, which only the template may"),
    ],
)
def test_an_answer_that_no_chat_can_hold_is_not_kept(
    vl: Path, model: ErnieModel, monkeypatch: pytest.MonkeyPatch, said: Sequence[str], problem: str
) -> None:
    script = Script(vl, model, "ernie_vl", [f"two{END}"])
    chat = scripted_chat(monkeypatch, script)
    ids = [id for part in said for id in script.text._backend.encode(part, add_special_tokens=False).ids]
    with monkeypatch.context() as patch:
        patch.setattr(Generator, "stream", lambda generator, document, sampling: iter([*ids, 2]))
        found = chat.ask("One?", lambda delta: None).problem
    assert found is not None and problem in found
    assert chat.messages == []
    assert chat.ask("One?", lambda delta: None).problem is None


def test_images_go_with_the_next_message(
    vl: Path, model: ErnieModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image = tmp_path / "an image.png"
    noise(56, 56).save(image)
    script = Script(vl, model, "ernie_vl", [f"seven{END}", f"two{END}"])
    chat = scripted_chat(monkeypatch, script)
    monkeypatch.chdir(tmp_path)
    chat.attach("image", "an image.png")
    chat.attach("image", str(image))
    chat.ask("Which digits?", lambda delta: None)
    assert chat.messages[0].parts == (
        ImagePart(str(image)),
        ImagePart(str(image)),
        TextPart("Which digits?"),
    )
    assert (
        "Picture 1:<|IMAGE_START|>" in script.prompts[0] and "Picture 2:<|IMAGE_START|>" in script.prompts[0]
    )
    assert chat.attached == []
    with pytest.raises(SampleError, match=r"no such image: .*gone\.png"):
        chat.attach("image", "gone.png")
    with pytest.raises(SampleError, match=r"an image\.png"):
        chat.attach("video", "an image.png")
    assert chat.attached == []
    # One that goes away while it waits ends its turn, not the chat.
    chat.attach("image", "an image.png")
    moved = image.rename(tmp_path / "moved.png")
    with pytest.raises(SampleError, match="no such image"):
        chat.ask("And now?", lambda delta: None)
    moved.rename(image)
    assert len(chat.messages) == 2 and chat.attached == []
    assert chat.ask("And now?", lambda delta: None).problem is None


def test_what_cannot_be_asked_changes_nothing(
    dense: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    noise(56, 56).save(tmp_path / "image.png")
    script = Script(dense, load_model(dense), "ernie", [f"two{END}"])
    chat = scripted_chat(monkeypatch, script)
    with pytest.raises(SampleError, match="does not take images or videos"):
        chat.attach("image", str(tmp_path / "image.png"))
    with pytest.raises(SampleError, match=r"contains <\|end_of_sentence\|>"):
        chat.ask(f"One{TERMINATOR}", lambda delta: None)
    chat.set_system("Be brief.")
    with pytest.raises(SampleError, match=r"contains <\|begin_of_sentence\|>"):
        chat.set_system(BOS)
    assert (chat.messages, chat.attached, chat.system) == ([], [], "Be brief.")
    assert chat.ask("<image> is plain text here", lambda delta: None).problem is None
    assert "User: <image> is plain" in script.prompts[0]
    bad = ({"type": "function", "function": {"name": "time", "description": TERMINATOR}},)
    with pytest.raises(SampleError, match="contain"):
        scripted_chat(monkeypatch, script, bad)


def test_a_saved_chat_can_be_trained_on(
    vl: Path, model: ErnieModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    noise(56, 56).save(tmp_path / "image.png")
    answers = [f"hm\n</think>\n\nLook:{CALL}{END}", f"ok\n</think>\n\nnoon{END}", f"hm</think>One{INTERRUPT}"]
    script = Script(vl, model, "ernie_vl_thinking", answers)
    chat = scripted_chat(monkeypatch, script, TOOLS)
    file = tmp_path / "saved.jsonl"
    with pytest.raises(DataError, match="nothing to save"):
        chat.save(file)
    chat.set_system("Be brief.")
    chat.attach("image", str(tmp_path / "image.png"))
    chat.ask("When is <video>?", lambda delta: None)
    chat.give_results(["12:00"], lambda delta: None)
    chat.save(file)
    chat.ask("Count", lambda delta: None)
    chat.save(file)
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    read = [
        parse_record(record, format="auto", base_dir=Path("/elsewhere"), sample_id="saved")
        for record in records
    ]
    assert read[1].messages[1:] == tuple(chat.messages) and read[1].tools == TOOLS
    assert read[1].messages[:5] == read[0].messages
    assert [message.trained for message in read[1].messages if message.role == "assistant"] == [
        True,
        True,
        False,
    ]
    assert script.encoder.encode(read[0]).num_loss_tokens > 0
    with pytest.raises(DataError, match=r"nowhere.*cannot be written: No such file"):
        chat.save(tmp_path / "nowhere" / "saved.jsonl")


def test_the_same_seed_gives_the_same_chat_and_each_answer_anew(vl: Path, model: ErnieModel) -> None:
    encoder, text = find_model(vl).encoder(), Detokenizer.from_checkpoint(vl)

    def talk(seed: int) -> list[str]:
        chat = Chat(model, encoder, text, Sampling(8, temperature=2.0, seed=seed))
        answers = []
        for _ in range(3):
            answers.append(chat.ask("Which digit?", lambda delta: None).answer.text)
            chat.reset()
        return answers

    first = talk(0)
    assert len(set(first)) == 3
    assert talk(0) == first != talk(7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"tools\.json: cannot be read: No such file"),
        ("[{", r"tools\.json: not valid JSON"),
        ('{"name": 3}', r"tools\.json: tool 1 must be"),
        ("3", r"tools\.json: tools must be a list"),
    ],
)
def test_files_of_tools_that_are_wrong(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "tools.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=message):
        load_tools(file)


@pytest.mark.parametrize("tools", [list(TOOLS), [TOOLS[0]["function"]], TOOLS[0]])
def test_tools_are_read_from_a_file(tmp_path: Path, tools: Any) -> None:
    file = tmp_path / "tools.json"
    file.write_text(json.dumps(tools))
    assert load_tools(file) == TOOLS
