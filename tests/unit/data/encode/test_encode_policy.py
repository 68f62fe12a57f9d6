"""What of a document carries loss, and how it is shown."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from erniekit.config import DataConfig
from erniekit.config.choices import LossOn, Reasoning
from erniekit.data.chat.conversation import Conversation, ReasoningPart, SampleError, ToolCallPart
from erniekit.data.chat.history import calls_as_history, untrained_reasoning
from erniekit.data.encode.document import IGNORE, Document
from erniekit.data.encode.encoder import Encoder, make_encoder
from tests.unit.data.helpers import SPECIAL, chat, encoded, make_checkpoint, make_tokenizer, noise, video

END = "<|end_of_sentence|>"
CALL = ToolCallPart("time", '{"zone": "Paris"}')
LOOP = chat(
    ("system", "be brief"),
    ("user", "old question"),
    ("assistant", [ReasoningPart("before"), "Paris"]),
    ("user", "what is the time?"),
    ("assistant", [ReasoningPart("one plus one"), "a minute", CALL]),
    ("tool", "seven"),
    ("assistant", [ReasoningPart("two plus two"), "seven"]),
    tools=[{"type": "function", "function": {"name": "time"}}],
)
KINDS = ["text_thinking", "thinking"]


def encoder_for(
    tmp_path: Path, kind: str, *, reasoning: Reasoning = "train", loss_on: LossOn = "all", eos: Any = 2
) -> Encoder:
    data = DataConfig.without_sources(reasoning=reasoning, loss_on=loss_on)
    return make_encoder(make_checkpoint(tmp_path, kind, eos_token_id=eos), data)


def documents_of(encoder: Encoder, conversation: Conversation) -> list[Document]:
    return [encoder.encode(part) for part in encoder.split(conversation)]


def counted(count: Callable[..., int], encoder: Encoder, conversation: Conversation) -> int:
    return count(conversation, encoder.template, encoder.policy)


def decode(ids: Any) -> str:
    tokenizer: PreTrainedTokenizerFast = make_tokenizer(None)
    return str(tokenizer.decode(ids))


def trained_texts(document: Document) -> list[str]:
    """The stretches of text that carry loss."""
    flags = np.append(False, document.labels[:-1] != IGNORE)
    stretches = np.split(np.arange(len(document)), np.flatnonzero(np.diff(flags)) + 1)
    return [decode(document.input_ids[part]) for part in stretches if flags[part[0]]]


@pytest.mark.parametrize("kind", KINDS)
def test_all_answers_are_trained_with_the_reasoning_that_stands_there(tmp_path: Path, kind: str) -> None:
    encoder = encoder_for(tmp_path, kind)
    end, (before, after), turn = (
        encoder.template.end_of_reasoning,
        encoder.template.answer,
        encoder.template.terminator,
    )
    call = "".join((encoder.template.tool_call[0], '{"name": "time", "arguments": {"zone": "Paris"}}'))
    assert trained_texts(encoder.encode(LOOP)) == [
        f"{before}Paris{after}{turn}",
        f"one plus one{end}{before}a minute{after}{call}{encoder.template.tool_call[1]}{turn}",
        f"two plus two{end}{before}seven{after}{turn}",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_masked_reasoning_stays_and_is_not_trained(tmp_path: Path, kind: str) -> None:
    encoder = encoder_for(tmp_path / "mask", kind, reasoning="mask")
    plain = encoder_for(tmp_path / "train", kind)
    document, other = encoder.encode(LOOP), plain.encode(LOOP)
    # The same text, cut at the same places.
    np.testing.assert_array_equal(document.input_ids, other.input_ids)
    before, after = encoder.template.answer
    turn = encoder.template.terminator
    found = trained_texts(document)
    assert found[0] == f"{before}Paris{after}{turn}"
    assert found[1].startswith(f"{before}a minute{after}")
    assert found[2] == f"{before}seven{after}{turn}"


def test_a_token_that_reaches_from_masked_reasoning_into_the_answer_is_trained(tmp_path: Path) -> None:
    encoder = encoder_for(tmp_path, "thinking", reasoning="mask")
    # A tag that ends with a space, which merges with the answer's first word.
    encoder.template = dataclasses.replace(encoder.template, end_of_reasoning="\n</think> ")
    answer = encoder.encode(chat(("user", "q"), ("assistant", [ReasoningPart("plus"), "Paris"])))
    assert trained_texts(answer) == [f" Paris{END}"]


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_reasoning_leaves_an_empty_block_that_is_not_trained(tmp_path: Path, kind: str) -> None:
    encoder = encoder_for(tmp_path, kind, reasoning="drop")
    document = encoder.encode(LOOP)
    text = decode(document.input_ids)
    assert "plus" not in text
    assert text.count(f"<think>\n{encoder.template.end_of_reasoning}") == 2
    assert all("think>" not in stretch for stretch in trained_texts(document))


@pytest.mark.parametrize("kind", ["text", "text_thinking", "vl", "thinking"])
@pytest.mark.parametrize("loss_on", ["all", "last_turn", "each_turn"])
def test_which_answers_are_trained(tmp_path: Path, kind: str, loss_on: LossOn) -> None:
    encoder = encoder_for(tmp_path, kind, loss_on=loss_on, reasoning="drop")
    found = trained_texts(encoder.encode(LOOP))
    expected = {"all": ["Paris", "a minute", "seven"], "last_turn": ["a minute", "seven"]}
    for text, word in zip(found, expected.get(loss_on, ["seven"]), strict=True):
        assert word in text
        assert text.endswith(encoder.template.terminator)


def inference(encoder: Encoder, conversation: Conversation) -> tuple[str, int]:
    """The text with the last answer as the model would have met and written it, and the prompt's length."""
    question = dataclasses.replace(conversation, messages=conversation.messages[:-1])
    prompt = encoder.encode_prompt(question)
    answer = encoder.encode(conversation)
    return decode(answer.input_ids), len(prompt)


@pytest.mark.parametrize("kind", ["text", "text_thinking", "vl", "thinking"])
def test_each_turn_stands_as_at_inference(tmp_path: Path, kind: str) -> None:
    reasoning: Reasoning = "train" if kind in KINDS else "drop"
    encoder = encoder_for(tmp_path, kind, loss_on="each_turn", reasoning=reasoning)
    documents = documents_of(encoder, LOOP)
    assert [document.sample_id for document in documents] == [f"f:1 (message {n})" for n in (3, 5, 7)]
    for document, end in zip(documents, (3, 5, 7), strict=True):
        question = dataclasses.replace(LOOP, messages=LOOP.messages[: end - 1])
        prompt = encoder.encode_prompt(question)
        # The answer begins where the prompt ends, and nothing before it is trained.
        np.testing.assert_array_equal(document.input_ids[: len(prompt)], prompt.input_ids)
        flags = document.labels != IGNORE
        assert np.flatnonzero(flags).tolist() == list(range(len(prompt) - 1, len(document) - 1))
        answer = "".join(trained_texts(document))
        ids = make_tokenizer(None)(answer, add_special_tokens=False)["input_ids"]
        assert document.input_ids[len(prompt) :].tolist() == ids
    assert trained_texts(documents[0])[0].startswith("before" if kind in KINDS else "Paris")


def test_each_turn_of_a_single_answer_keeps_its_name(tmp_path: Path) -> None:
    encoder = encoder_for(tmp_path, "text", loss_on="each_turn")
    one = chat(("user", "q"), ("assistant", "a", False), ("user", "r"), ("assistant", "b"))
    (document,) = documents_of(encoder, one)
    assert document.sample_id == "f:1"
    first = chat(("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b", False))
    (document,) = documents_of(encoder, first)
    assert trained_texts(document) == [f"a{END}"]
    with pytest.raises(SampleError, match="no token carries loss: the last message must be trained"):
        encoder.encode(first)
    with pytest.raises(SampleError, match="at least one assistant message must be trained"):
        documents_of(encoder, chat(("user", "q"), ("assistant", "a", False)))
    with pytest.raises(SampleError, match="the last must be the assistant's answer"):
        documents_of(encoder, chat(("user", "q"), ("assistant", "a"), ("user", "r")))


def test_the_rejected_answer_goes_with_the_whole_chat_only(tmp_path: Path) -> None:
    encoder = encoder_for(tmp_path, "text", loss_on="each_turn")
    turns = chat(("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"))
    pair = dataclasses.replace(turns, rejected=chat(("assistant", "c")).messages)
    assert [bool(part.rejected) for part in encoder.split(pair)] == [False, True]
    for one, other in zip(documents_of(encoder, pair), documents_of(encoder, turns), strict=True):
        np.testing.assert_array_equal(one.input_ids, other.input_ids)


@pytest.mark.parametrize("loss_on", ["all", "last_turn"])
def test_other_policies_give_one_document(tmp_path: Path, loss_on: LossOn) -> None:
    encoder = encoder_for(tmp_path, "thinking", loss_on=loss_on)
    assert encoder.split(LOOP) == [LOOP]
    (document,) = documents_of(encoder, LOOP)
    np.testing.assert_array_equal(document.labels, encoder.encode(LOOP).labels)


def test_reasoning_that_is_never_trained_is_counted(tmp_path: Path) -> None:
    inline = chat(("user", "q"), ("assistant", "<think>hm</think>a"), ("user", "r"), ("assistant", "b"))
    counts = {}
    for loss_on in ("all", "last_turn", "each_turn"):
        encoder = encoder_for(tmp_path / loss_on, "thinking", loss_on=loss_on)  # type: ignore[arg-type]
        counts[loss_on] = [counted(untrained_reasoning, encoder, item) for item in (LOOP, inline)]
    assert counts == {"all": [1, 1], "last_turn": [0, 0], "each_turn": [0, 0]}
    masked = encoder_for(tmp_path / "mask", "thinking", reasoning="mask")
    assert counted(untrained_reasoning, masked, LOOP) == 0
    # In a template without thinking the block is plain text, and trained as such.
    assert counted(untrained_reasoning, encoder_for(tmp_path / "text", "text"), inline) == 0


ASKED = chat(
    ("user", "q"),
    ("assistant", ["a", CALL, CALL]),
    ("tool", "seven"),
    ("assistant", "b"),
    ("user", "r"),
    ("assistant", [CALL]),
    ("tool", "seven"),
    ("assistant", "c"),
    tools=[{"type": "function", "function": {"name": "time"}}],
)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("text", {"all": 0, "last_turn": 0, "each_turn": 0}),
        ("vl", {"all": 3, "last_turn": 1, "each_turn": 0}),
        ("text_thinking", {"all": 2, "last_turn": 0, "each_turn": 0}),
        ("thinking", {"all": 2, "last_turn": 0, "each_turn": 0}),
    ],
)
def test_calls_that_are_trained_as_history_are_counted(
    tmp_path: Path, kind: str, expected: dict[LossOn, int]
) -> None:
    """They are those before which something else stands than in the prompt that asks for them."""
    for loss_on, count in expected.items():
        encoder = encoder_for(tmp_path / loss_on, kind, loss_on=loss_on)
        assert counted(calls_as_history, encoder, ASKED) == count
        differing = 0
        for part in encoder.split(ASKED):
            trained = encoder.policy.trained(part.messages)
            whole = _text(encoder.template.render(part, encoder.policy))
            for index, message in enumerate(part.messages):
                calls = sum(isinstance(item, ToolCallPart) for item in message.parts)
                if trained[index] and calls:
                    before = dataclasses.replace(part, messages=part.messages[:index])
                    prompt = _text(encoder.template.render_prompt(before, encoder.policy))
                    # The call follows its prompt to the letter, or does not.
                    answer = "a".join(encoder.template.answer) if calls == 2 else ""
                    asked = prompt + (encoder.template.end_of_reasoning if "thinking" in kind else "")
                    opened = asked + answer + encoder.template.tool_call[0]
                    differing += 0 if whole.startswith(opened) else calls
        assert differing == count
    context = tuple(dataclasses.replace(message, trained=False) for message in ASKED.messages[:-1])
    untrained = dataclasses.replace(ASKED, messages=(*context, ASKED.messages[-1]))
    assert counted(calls_as_history, encoder_for(tmp_path / "masked", kind), untrained) == 0


def _text(spans: Any) -> str:
    return "".join(span.text for span in spans)


@pytest.mark.parametrize("eos", [2, [9, 2], "terminator"])
@pytest.mark.parametrize("reasoning", ["train", "mask"])
def test_the_terminator_is_trained_as_the_stop_token(tmp_path: Path, eos: Any, reasoning: Reasoning) -> None:
    for kind in KINDS:
        name = "<|im_end|>" if kind == "text_thinking" else END
        token = SPECIAL.index(name)
        ids = token if eos == "terminator" else eos
        encoder = encoder_for(tmp_path / kind, kind, reasoning=reasoning, eos=ids)
        document = encoder.encode(LOOP)
        ends = np.flatnonzero(document.input_ids == token)
        labels = document.labels[ends - 1]
        stop = token if eos == "terminator" else np.atleast_1d(eos)[0]
        assert labels[labels != IGNORE].tolist() == [stop] * 3
        others = np.setdiff1d(np.flatnonzero(document.labels != IGNORE), ends - 1)
        np.testing.assert_array_equal(document.labels[others], document.input_ids[others + 1])


@pytest.mark.parametrize("kind", ["text", "text_thinking"])
@pytest.mark.parametrize("loss_on", ["all", "last_turn", "each_turn"])
def test_plain_text(tmp_path: Path, kind: str, loss_on: LossOn) -> None:
    text = " Paris is <think>a city\n\nUser: 北京 "
    encoder = encoder_for(tmp_path, kind, loss_on=loss_on, eos=[7, 2])
    (document,) = documents_of(encoder, chat(("text", text)))
    begin = [SPECIAL.index("<|begin_of_sentence|>")] if kind == "text" else []
    ids = begin + make_tokenizer(None)(text, add_special_tokens=False)["input_ids"]
    assert document.input_ids.tolist() == ids
    assert document.labels.tolist() == [*ids[1:], 7]
    assert document.num_loss_tokens == len(document)


def test_the_end_of_a_text_without_stop_tokens_is_the_terminator(tmp_path: Path) -> None:
    encoder = encoder_for(tmp_path, "text")
    alone = Encoder(encoder._tokenizer, encoder.template, eos_token_ids=())
    assert alone.encode(chat(("text", "Paris"))).labels[-1] == SPECIAL.index(END)


def test_a_text_that_is_switched_off_carries_no_loss(text_encoder: Encoder) -> None:
    with pytest.raises(SampleError, match="no token carries loss"):
        text_encoder.encode(chat(("text", "Paris", False)))


def segments_of(encoder: Encoder, conversation: Conversation) -> list[tuple[str, str, bool]]:
    document, segments = encoder.encode(conversation), encoder.segments(conversation)
    assert sum(segment.tokens for segment in segments) == len(document)
    return [(segment.kind, segment.text, segment.trained) for segment in segments]


def test_segments_of_a_tool_loop(tmp_path: Path) -> None:
    encoder = encoder_for(tmp_path, "thinking", reasoning="mask")
    found = segments_of(encoder, LOOP)
    assert "".join(text for _, text, _ in found) == decode(encoder.encode(LOOP).input_ids)
    assert [item for item in found if item[0] != "template"] == [
        ("tools", '[{"type": "function", "function": {"name": "time"}}]', False),
        ("system", "be brief", False),
        ("user", "old question", False),
        ("answer", "Paris", True),
        ("user", "what is the time?", False),
        ("reasoning", "one plus one", False),
        ("answer", "a minute", True),
        ("tool_call", '{"name": "time", "arguments": {"zone": "Paris"}}', True),
        ("tool_result", "seven", False),
        ("reasoning", "two plus two", False),
        ("answer", "seven", True),
    ]
    assert found[-1] == ("template", END, True)


def test_segments_of_media_and_text(vl_encoder: Encoder) -> None:
    image, clip = encoded(noise(56, 140)), video(28, 28, 4)
    conversation = chat(("user", ["one ", image, clip, " two"]), ("assistant", "seven"))
    segments = vl_encoder.segments(conversation)
    media = [segment for segment in segments if segment.kind == "media"]
    document = vl_encoder.encode(conversation)
    assert [segment.part for segment in media] == list(conversation.messages[0].parts[1:3])
    assert [segment.tokens for segment in media] == [item.tokens + 2 for item in document.media]
    assert media[0].text == "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"
    assert sum(segment.tokens for segment in segments) == len(document)
    plain = segments_of(vl_encoder, chat(("text", "Paris is 北京")))
    assert plain == [
        ("template", "<|begin_of_sentence|>", False),
        ("text", "Paris is 北京", True),
    ]


def test_a_token_counts_for_the_segment_in_which_it_begins(text_encoder: Encoder) -> None:
    # "User: " and "q" are one string, in which the space merges with the word.
    segments = text_encoder.segments(chat(("user", "seven"), ("assistant", "a")))
    joined = {segment.text: segment.tokens for segment in segments}
    tokenizer = make_tokenizer(None)
    assert tokenizer.tokenize("User: seven\n")[-2:] == ["▁seven", "<0x0A>"]
    assert (joined["User: "], joined["seven"]) == (len(tokenizer.tokenize("User: seven")), 0)
