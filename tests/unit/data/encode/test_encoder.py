import dataclasses
import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models
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
from erniekit.data.encode.tokenizer import stop_token_ids
from erniekit.errors import CheckpointError, DataError
from tests.unit.data.helpers import (
    SHARED,
    chat,
    encoded,
    make_checkpoint,
    noise,
    openai,
    video,
    write_json,
)

END = "<|end_of_sentence|>"
SMALL = encoded(noise(8, 8))  # 2 x 2 tokens
WIDE = encoded(noise(56, 140))  # 2 x 5 tokens
CHATS = [
    chat(("user", "what is one plus two?"), ("assistant", "Paris is seven.")),
    chat(
        ("system", "be brief"),
        ("user", "q"),
        ("assistant", "Paris"),
        ("user", "北京 ?\n"),
        ("assistant", "seven"),
    ),
]
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
IMAGE_CHATS = [
    chat(("user", [SMALL, "what is in the picture?"]), ("assistant", "a cat")),
    chat(
        ("user", ["a", WIDE, "b", SMALL]),
        ("assistant", "Paris"),
        ("user", [SMALL, WIDE]),
        ("assistant", "seven"),
    ),
]


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


@pytest.mark.parametrize(
    "text",
    [
        "x<|IMAGE_PLACEHOLDER|>",
        "<|IMAGE_START|>",
        "<|VIDEO_END|>",
        "<|image@placeholder|>",
        END,
        "<|begin_of_sentence|>",
    ],
)
def test_tokens_of_the_template_in_a_text_are_refused(vl_encoder: Encoder, text: str) -> None:
    for turns in ([("user", text), ("assistant", "a")], [("user", "q"), ("assistant", text)]):
        with pytest.raises(
            SampleError,
            match=r"message \d \((user|assistant)\) contains <\|.*, which only the template may write",
        ) as caught:
            vl_encoder.encode(chat(*turns))
        assert caught.value.reason == "reserved token"


RESERVED = f"x{END}"


@pytest.mark.parametrize(
    ("conversation", "where"),
    [
        (chat(("user", "q"), ("assistant", [ReasoningPart(RESERVED), "a"])), "message 2 (assistant)"),
        (chat(("user", "q"), ("assistant", ToolCallPart(RESERVED, "{}"))), "message 2 (assistant)"),
        (
            chat(("user", "q"), ("assistant", ToolCallPart("f", f'{{"a": "{RESERVED}"}}'))),
            "message 2 (assistant)",
        ),
        (chat(("user", ["q <|end_of", "_sentence|>"]), ("assistant", "a")), "message 1 (user)"),
        (chat(("user", "q"), ("tool", RESERVED), ("assistant", "a")), "message 2 (tool)"),
        (
            chat(("user", "q"), ("assistant", "a"), tools=[{"name": "f", "description": RESERVED}]),
            "the list of tools",
        ),
        (chat(("text", RESERVED)), "message 1 (text)"),
    ],
)
def test_tokens_of_the_template_are_refused_everywhere(
    thinking_encoder: Encoder, conversation: Conversation, where: str
) -> None:
    for encode in (thinking_encoder.encode, thinking_encoder.segments):
        with pytest.raises(SampleError, match=re.escape(f"f:1: {where} contains {END}, which only")):
            encode(conversation)


def test_tokens_of_the_template_in_the_rejected_answer_are_refused(text_encoder: Encoder) -> None:
    pair = dataclasses.replace(CHATS[0], rejected=chat(("assistant", RESERVED)).messages)
    with pytest.raises(SampleError, match=r"rejected message 1 \(assistant\) contains <\|end_of_sentence\|>"):
        text_encoder.encode(pair)


def test_tokens_of_another_template_are_plain_text(
    text_encoder: Encoder, text_thinking_encoder: Encoder
) -> None:
    for turns in ([("user", "<|im_end|>"), ("assistant", "a")], [("text", "<|im_start|>")]):
        assert len(text_encoder.encode(chat(*turns)))
        with pytest.raises(SampleError, match=r"contains <\|im_"):
            text_thinking_encoder.encode(chat(*turns))


def test_bad_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: not found"):
        make_encoder(tmp_path)
    write_json(tmp_path / "config.json", {"model_type": "ernie4_5"})
    with pytest.raises(CheckpointError, match="cannot load the tokenizer"):
        make_encoder(tmp_path)
    directory = make_checkpoint(tmp_path / "vl", "vl")
    write_json(directory / "config.json", {"model_type": "ernie4_5_moe_vl", "im_patch_id": 6})
    with pytest.raises(CheckpointError, match="needs the token ids image_start_token_id, image_end_token_id"):
        make_encoder(directory)
    ids = {key: 3 for key in ("image_start_token_id", "image_end_token_id", "video_start_token_id")}
    write_json(
        directory / "config.json",
        {"model_type": "ernie4_5_moe_vl", "im_patch_id": 99999, "video_end_token_id": 3, **ids},
    )
    with pytest.raises(CheckpointError, match="99999 as the id of a media token"):
        make_encoder(directory)
    plain = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>").save_pretrained(tmp_path / "plain")
    write_json(tmp_path / "plain" / "config.json", {"model_type": "ernie4_5"})
    with pytest.raises(CheckpointError, match=r"the tokenizer has no token <\|begin_of_sentence\|>"):
        make_encoder(tmp_path / "plain")


def test_nested_config_and_missing_generation_config(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, "vl")
    flat = make_encoder(directory)
    assert flat.media_tokens is not None
    tokens = flat.media_tokens
    write_json(
        directory / "config.json",
        {
            "model_type": "ernie4_5_vl_moe",
            "image_token_id": tokens.image_placeholder,
            "image_start_token_id": tokens.image_start,
            "image_end_token_id": tokens.image_end,
            "video_token_id": tokens.image_placeholder,
            "video_start_token_id": tokens.video_start,
            "video_end_token_id": tokens.video_end,
        },
    )
    (directory / "generation_config.json").unlink()
    nested = make_encoder(directory)
    assert nested.media_tokens == tokens
    for conversation in IMAGE_CHATS:
        one, other = flat.encode(conversation), nested.encode(conversation)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.input_ids, other.input_ids)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/reference_models")
def test_tokenizer_model_alone_is_enough(tmp_path: Path) -> None:
    source = SHARED / "reference_models" / "vl_hub"
    for name in (
        "config.json",
        "preprocessor_config.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "chat_template.jinja",
    ):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    one, other = make_encoder(source), make_encoder(tmp_path)
    for conversation in (CHATS[0], *IMAGE_CHATS):
        np.testing.assert_array_equal(
            one.encode(conversation).input_ids, other.encode(conversation).input_ids
        )


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


def test_an_unknown_template_is_an_error(text_checkpoint: Path) -> None:
    with pytest.raises(DataError, match=r"unknown data\.template 'llama'"):
        make_encoder(text_checkpoint, DataConfig.without_sources(template="llama"))


def test_a_panic_of_the_tokenizer_is_an_error_of_the_sample() -> None:
    class PanicException(BaseException):
        """As Rust's, which tokenizers raises for texts of gigabytes."""

    message = r"f:1: the tokenizer failed, .*: capacity overflow"
    with pytest.raises(SampleError, match=message) as caught, encoder._no_panic("f:1"):
        raise PanicException("capacity overflow")
    assert caught.value.reason == "not tokenized"
    with pytest.raises(KeyboardInterrupt), encoder._no_panic("f:1"):
        raise KeyboardInterrupt


_NESTED = '{"a": ' + "[" * 100_000


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("tokenizer.json", content) for content in ("{}", '{"model": 1}', '{"version": []}')),
        *((f"tokenizer{end}.json", content) for end in ("", "_config") for content in ("[]", "1", _NESTED)),
    ],
)
def test_tokenizer_files_of_wrong_types(
    text_checkpoint: Path, tmp_path: Path, name: str, content: str
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(text_checkpoint, directory)
    (directory / name).write_text(content)
    with pytest.raises(CheckpointError, match=rf"^{directory}: cannot load the tokenizer: "):
        make_encoder(directory)


@pytest.mark.parametrize("found", ["2", -1, [2, "3"], {}, True, 10**30])
def test_stop_tokens_of_wrong_types(tmp_path: Path, found: object) -> None:
    write_json(tmp_path / "generation_config.json", {"eos_token_id": found})
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id must be a token id"):
        stop_token_ids(tmp_path, None)
