import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from erniekit.config import DataConfig
from erniekit.data.chat.conversation import (
    Conversation,
    ImagePart,
    Message,
    ReasoningPart,
    SampleError,
    TextPart,
    ToolCallPart,
    VideoPart,
)
from erniekit.data.encode import encoder
from erniekit.data.encode.document import IGNORE
from erniekit.data.encode.encoder import Encoder, make_encoder
from tests.unit.data.encode.chats import CHATS, END, IMAGE_CHATS, SMALL, WIDE
from tests.unit.data.helpers import SHARED, chat, make_checkpoint, openai, video, write_json

TOOLS = ({"type": "function", "function": {"name": "time", "description": '北京 "time"'}},)
CALL = ToolCallPart("time", '{"zone": "Paris"}')
TOOL_CHAT = chat(
    ("user", "what is the time?"),
    ("assistant", ["One plus", CALL, ToolCallPart('ti"me', "{}")]),
    ("tool", "seven"),
    ("tool", '{"is": 2}'),
    ("assistant", "Paris is seven."),
    tools=TOOLS,
)
# 4 frames of 56 x 84 pixels, enlarged to 420 x 616: 15 x 22 tokens for each two frames.
CLIP = video(56, 84, 4)
CLIP_TOKENS = 2 * 15 * 22


def reference_ids(directory: Path, conversation: Conversation, **options: Any) -> list[int]:
    """apply_chat_template, media widened as transformers' processor and engines do it: in the text."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory))
    tools = list(conversation.tools) or None
    text = tokenizer.apply_chat_template(openai(conversation), tools=tools, tokenize=False, **options)
    text = text.replace("<|image@placeholder|>", "<|IMAGE_PLACEHOLDER|>")
    tokens: dict[Any, int] = {SMALL: 4, WIDE: 10, CLIP.source: CLIP_TOKENS}
    media = (ImagePart, VideoPart)
    sources = [part.source for m in conversation.messages for part in m.parts if isinstance(part, media)]
    pieces = text.split("<|IMAGE_PLACEHOLDER|>")
    for number, source in enumerate(sources):
        pieces[number] += "<|IMAGE_PLACEHOLDER|>" * tokens[source]
    ids: list[int] = tokenizer("".join(pieces), add_special_tokens=False)["input_ids"]
    return ids


def first_turn(conversation: Conversation) -> Conversation:
    roles = [message.role for message in conversation.messages]
    return dataclasses.replace(conversation, messages=conversation.messages[: roles.index("assistant")])


def has_no_image(conversation: Conversation) -> bool:
    return not any(isinstance(part, ImagePart) for m in conversation.messages for part in m.parts)


def checkpoints() -> list[Any]:
    shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/reference_models")
    return [
        *(
            pytest.param(name, id=name)
            for name in (
                "text_checkpoint",
                "text_thinking_checkpoint",
                "vl_checkpoint",
                "thinking_checkpoint",
            )
        ),
        *(
            pytest.param(SHARED / "reference_models" / name, id=name, marks=shared)
            for name in ("dense", "vl_hub", "vl_hf")
        ),
    ]


@pytest.fixture(params=checkpoints())
def checkpoint(request: pytest.FixtureRequest) -> Path:
    found = request.param
    return request.getfixturevalue(found) if isinstance(found, str) else found


def chats_for(encoder: Encoder, directory: Path) -> list[Conversation]:
    # The chat templates of the stored VL models leave system messages out, and all stored ones know no tools
    # and no videos: not so those of the released ones.
    stored = SHARED in directory.parents
    if encoder.image_spec is None:
        return CHATS if stored else [*CHATS, TOOL_CHAT]
    if stored:
        return [c for c in CHATS + IMAGE_CHATS if c.messages[0].role != "system"]
    video_chat = chat(("user", [SMALL, CLIP, "which of these?", WIDE]), ("assistant", "a"))
    return [*CHATS, *IMAGE_CHATS, TOOL_CHAT, video_chat]


def test_prompt_ids_equal_apply_chat_template(checkpoint: Path) -> None:
    encoder = make_encoder(checkpoint)
    for conversation in chats_for(encoder, checkpoint):
        prompt = dataclasses.replace(conversation, messages=conversation.messages[:-1])
        for part in (prompt, first_turn(conversation)):
            document = encoder.encode_prompt(part)
            assert document.input_ids.tolist() == reference_ids(checkpoint, part, add_generation_prompt=True)
            assert document.num_loss_tokens == 0


def test_first_answer_is_tokenised_apart_from_its_prompt(checkpoint: Path) -> None:
    encoder = make_encoder(checkpoint)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(checkpoint))
    before, after = encoder.template.answer
    for conversation in (CHATS[0], IMAGE_CHATS[0]):
        if encoder.image_spec is None and not has_no_image(conversation):
            continue
        prompt = encoder.encode_prompt(first_turn(conversation)).input_ids.tolist()
        document = encoder.encode(conversation)
        answer = conversation.messages[1].parts[0]
        assert isinstance(answer, TextPart)
        text = before + answer.text + after + encoder.template.terminator
        answer_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        context = document.input_ids[: -len(answer_ids)].tolist()
        if encoder.template.thinking == "on":
            # The model would write the end of the block itself: here it is context, tokenised with it.
            assert tokenizer.decode(context) == tokenizer.decode(prompt) + encoder.template.end_of_reasoning
        else:
            assert context == prompt
        assert document.input_ids[-len(answer_ids) :].tolist() == answer_ids
        assert document.num_loss_tokens == len(answer_ids)


@pytest.mark.parametrize("name", ["text", "text_thinking", "thinking"])
def test_whole_text_equals_apply_chat_template(name: str, request: pytest.FixtureRequest) -> None:
    encoder: Encoder = request.getfixturevalue(f"{name}_encoder")
    directory = request.getfixturevalue(f"{name}_checkpoint")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory))
    reasoned = dataclasses.replace(TOOL_CHAT, messages=tuple(map(with_reasoning, TOOL_CHAT.messages)))
    for conversation in [*CHATS, reasoned if encoder.template.thinking == "on" else TOOL_CHAT]:
        text = tokenizer.apply_chat_template(
            openai(conversation),
            tools=list(conversation.tools) or None,
            tokenize=False,
            add_generation_prompt=False,
        )
        # Nothing follows the last terminator here.
        text = text.removesuffix(encoder.template.after_answer)
        assert tokenizer.decode(encoder.encode(conversation).input_ids) == text


def with_reasoning(message: Message) -> Message:
    if message.role != "assistant":
        return message
    return Message(message.role, (ReasoningPart("two and two"), *message.parts), message.trained)


def test_whole_ids_equal_apply_chat_template_where_nothing_merges(
    text_checkpoint: Path, text_encoder: Encoder, vl_checkpoint: Path, vl_encoder: Encoder
) -> None:
    # No merge crosses a line end, so an answer that begins with one keeps apart from "Assistant: " by itself.
    turns = [("user", "q"), ("assistant", "\nParis"), ("user", "what is two?"), ("assistant", "\nseven")]
    text_ids = text_encoder.encode(chat(*turns)).input_ids.tolist()
    assert text_ids == reference_ids(text_checkpoint, chat(*turns), add_generation_prompt=False)
    # The last answer of a VL chat stands after the think block, with which nothing merges either.
    for conversation in (CHATS[0], IMAGE_CHATS[0]):
        block = Conversation((*conversation.messages[:-1], after_block(conversation.messages[-1])), "f:1")
        vl_ids = vl_encoder.encode(conversation).input_ids.tolist()
        assert vl_ids == reference_ids(vl_checkpoint, block, add_generation_prompt=False)


def after_block(message: Message) -> Message:
    return Message(message.role, (TextPart("<think>\n\n</think>\n\n" + message.parts[0].text),), True)  # type: ignore[union-attr]


def test_labels_are_shifted_and_end_with_the_stop_token(text_checkpoint: Path, tmp_path: Path) -> None:
    conversation = CHATS[1]
    for eos, label in ((2, 2), ([7, 2], 7), ([2, 4], 4), (4, 4)):  # 4 = <|end_of_sentence|>
        document = make_encoder(make_checkpoint(tmp_path / str(eos), "text", eos_token_id=eos)).encode(
            conversation
        )
        ends = np.flatnonzero(document.input_ids == 4)
        assert len(ends) == 2
        np.testing.assert_array_equal(document.labels[ends - 1], label)
        assert document.labels[-1] == IGNORE
        trained = np.flatnonzero(document.labels != IGNORE)
        inner = np.setdiff1d(trained, ends - 1)
        np.testing.assert_array_equal(document.labels[inner], document.input_ids[inner + 1])
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(text_checkpoint))
        assert tokenizer.decode(document.input_ids[trained + 1]) == f"Paris{END}seven{END}"


def test_untrained_answers_have_no_labels(text_encoder: Encoder) -> None:
    turns = chat(("user", "q"), ("assistant", "Paris", False), ("user", "q"), ("assistant", "seven"))
    document = text_encoder.encode(turns)
    other = text_encoder.encode(chat(("user", "q"), ("assistant", "seven")))
    assert document.num_loss_tokens == other.num_loss_tokens
    with pytest.raises(SampleError, match="no token carries loss") as caught:
        text_encoder.encode(chat(("user", "q"), ("assistant", "a", False), sample_id="d.jsonl:9"))
    assert (caught.value.reason, caught.value.sample_id) == ("no loss token", "d.jsonl:9")


def test_reasoning_is_trained(thinking_checkpoint: Path, thinking_encoder: Encoder) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(thinking_checkpoint))
    document = thinking_encoder.encode(
        chat(("user", "q"), ("assistant", [ReasoningPart("two and two"), "Paris"]))
    )
    trained = np.flatnonzero(document.labels != IGNORE)
    assert tokenizer.decode(document.input_ids[trained + 1]) == f"two and two\n</think>\n\nParis{END}"


_READ_AND_ENCODE = """
import pickle, sys
encoder, conversations = pickle.load(sys.stdin.buffer)
documents = [encoder.encode(conversation) for conversation in conversations]
assert "transformers" not in sys.modules, "encoding must not import transformers"
assert "paddle" not in sys.modules and "torch" not in sys.modules
pickle.dump((encoder.identity, documents), sys.stdout.buffer)
"""


def test_an_encoder_goes_to_another_process_without_transformers(vl_encoder: Encoder) -> None:
    conversations = [*CHATS, *IMAGE_CHATS, TOOL_CHAT, chat(("user", CLIP), ("assistant", "a"))]
    payload = pickle.dumps((vl_encoder, conversations))
    done = subprocess.run(
        [sys.executable, "-c", _READ_AND_ENCODE], input=payload, capture_output=True, check=False
    )
    assert not done.returncode, done.stderr.decode()
    identity, documents = pickle.loads(done.stdout)
    assert identity == vl_encoder.identity
    for conversation, document in zip(conversations, documents, strict=True):
        expected = vl_encoder.encode(conversation)
        np.testing.assert_array_equal(document.input_ids, expected.input_ids)
        np.testing.assert_array_equal(document.labels, expected.labels)
        assert document.media == expected.media


def test_identity_is_equal_as_long_as_encoding_is(vl_checkpoint: Path, tmp_path: Path) -> None:
    same = DataConfig.without_sources()
    identity = make_encoder(vl_checkpoint, same).identity
    assert make_encoder(make_checkpoint(tmp_path / "copy", "vl"), same).identity == identity
    # The seed decides nothing unless frames are picked at random.
    assert make_encoder(vl_checkpoint, seed=3).identity == identity
    changed = [
        DataConfig.without_sources(template="ernie_vl_thinking"),
        DataConfig.without_sources(min_pixels=784),
        DataConfig.without_sources(video_fps=1.0),
        DataConfig.without_sources(video_timestamps=False),
        DataConfig.without_sources(video_sampling="random"),
        DataConfig.without_sources(reasoning="mask"),
        DataConfig.without_sources(loss_on="last_turn"),
    ]
    found = {make_encoder(vl_checkpoint, options).identity for options in changed}
    found.add(
        make_encoder(vl_checkpoint, DataConfig.without_sources(video_sampling="random"), seed=3).identity
    )
    found.add(make_encoder(make_checkpoint(tmp_path / "eos", "vl", eos_token_id=4), same).identity)
    tokenizer = json.loads((vl_checkpoint / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    other = make_checkpoint(tmp_path / "merges", "vl")
    write_json(other / "tokenizer.json", tokenizer)
    found.add(make_encoder(other, same).identity)
    assert len(found) == len(changed) + 3
    assert identity not in found


def test_a_panic_of_the_tokenizer_is_an_error_of_the_sample() -> None:
    class PanicException(BaseException):
        """As Rust's, which tokenizers raises for texts of gigabytes."""

    message = r"f:1: the tokenizer failed, .*: capacity overflow"
    with pytest.raises(SampleError, match=message) as caught, encoder._no_panic("f:1"):
        raise PanicException("capacity overflow")
    assert caught.value.reason == "not tokenized"
    with pytest.raises(KeyboardInterrupt), encoder._no_panic("f:1"):
        raise KeyboardInterrupt
