"""Preference pairs as documents: token for token what each answer alone is encoded to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.config import DataConfig
from erniekit.data.chat.conversation import Conversation, ReasoningPart, TextPart, ToolCallPart
from erniekit.data.encode.document import IGNORE, Document
from erniekit.data.encode.encoder import Encoder, make_encoder
from erniekit.data.encode.pairs import encode_pair, prompt_messages
from erniekit.data.encode.samples import Pairs, Sample, SampleReader
from erniekit.data.files.reader import Cursor, Record
from erniekit.data.load.batch import pack
from erniekit.data.media.item import decode
from erniekit.data.store.references import ReferenceFile
from erniekit.data.store.store import DocumentStore, StoreWriter
from tests.unit.data.helpers import chat, data_uri, encoded, noise


def pair(prompt: list[tuple[str, Any]], chosen: Any, rejected: Any) -> Conversation:
    """Answers: the content of one assistant message, or a list of turns."""

    def turns(answer: Any) -> list[tuple[str, Any]]:
        return (
            answer if isinstance(answer, list) and isinstance(answer[0], tuple) else [("assistant", answer)]
        )

    before = [(role, content, False) for role, content in prompt]
    whole = chat(*before, *turns(chosen))
    return dataclasses.replace(whole, rejected=chat(*turns(rejected)).messages)


def alone(encoder: Encoder, conversation: Conversation) -> list[Document]:
    """The documents of both answers."""
    prompt = conversation.rejected_prompt or conversation.messages[: prompt_messages(conversation)]
    other = Conversation((*prompt, *conversation.rejected), conversation.sample_id, conversation.tools)
    return [encoder.encode(conversation), encoder.encode(other)]


def branch_of(document: Document, number: int) -> tuple[np.ndarray, ...]:
    """Ids, labels, positions and modality that an answer's own document would have."""
    assert document.branches is not None
    start, second = document.branches
    answer = np.arange(start, second) if number == 0 else np.arange(second, len(document))
    index = np.concatenate([np.arange(start), answer])
    return (
        document.input_ids[index],
        document.labels[index],
        document.position_ids[:, index],
        document.modality[index],
    )


def check(encoder: Encoder, conversation: Conversation, shared: int | None = None) -> Document:
    """Both forms hold exactly what the answers alone are."""
    wanted = alone(encoder, conversation)
    for share in (True, False):
        document = encode_pair(encoder, conversation, share=share)
        for number, expected in enumerate(wanted):
            found = branch_of(document, number)
            fields = (expected.input_ids, expected.labels, expected.position_ids, expected.modality)
            for one, other in zip(found, fields, strict=True):
                np.testing.assert_array_equal(one, other)
        assert document.num_loss_tokens == sum(item.num_loss_tokens for item in wanted)
    document = encode_pair(encoder, conversation)
    assert document.branches is not None
    assert not (document.labels[: document.branches[0]] != IGNORE).any()
    if shared is not None:
        assert document.branches[0] == shared
    return document


def image(seed: int = 0) -> bytes:
    return encoded(noise(56, 84, seed))


@pytest.mark.parametrize("kind", ["text", "vl", "thinking", "text_thinking"])
def test_the_prompt_is_as_at_inference(kind: str, request: pytest.FixtureRequest) -> None:
    encoder: Encoder = request.getfixturevalue(f"{kind}_encoder")
    chosen = [ReasoningPart("one plus one"), TextPart("two")] if "thinking" in kind else "seven apples"
    rejected = [ReasoningPart("no"), TextPart("Paris")] if "thinking" in kind else "a cat"
    conversation = pair([("system", "be short"), ("user", "one plus one?")], chosen, rejected)
    prompt = encoder.encode_prompt(
        dataclasses.replace(conversation, messages=conversation.messages[:2], rejected=())
    )
    document = check(encoder, conversation, shared=len(prompt) - 1)
    np.testing.assert_array_equal(document.input_ids[: len(prompt)], prompt.input_ids)
    assert document.branches is not None
    # The token that both branches begin with is the prompt's last.
    assert document.input_ids[document.branches[1]] == prompt.input_ids[-1]


def test_an_answer_without_reasoning_against_one_with_it(thinking_encoder: Encoder) -> None:
    check(thinking_encoder, pair([("user", "two?")], [ReasoningPart("so"), TextPart("seven")], "seven"))


def test_images_of_the_prompt_are_there_once(vl_encoder: Encoder) -> None:
    conversation = pair([("user", [image(), "what?", image(1)])], "a cat", "two apples")
    shared = check(vl_encoder, conversation)
    plain = encode_pair(vl_encoder, conversation, share=False)
    assert [len(shared.media), len(plain.media)] == [2, 4]
    assert plain.media[2].start == plain.media[0].start + plain.branches[1]  # type: ignore[index]


def test_images_of_the_answers_go_with_their_branch(vl_encoder: Encoder) -> None:
    def loop(seed: int, end: str) -> list[tuple[str, Any]]:
        return [("assistant", ToolCallPart("look", "{}")), ("tool", image(seed)), ("assistant", end)]

    conversation = pair([("user", [image(), "what?"])], loop(1, "a cat"), loop(2, "apples"))
    document = check(vl_encoder, conversation)
    assert len(document.media) == 3
    row = pack(
        [document], [item for item in decode(document.media, document.sample_id, vl_encoder.media_spec)]
    )
    assert len(row.media_positions) == sum(item.tokens for item in document.media)
    assert (row.modality[row.media_positions] == 1).all()


@pytest.mark.parametrize("answer", ["a cat", "two apples"])
def test_prompts_of_other_images(vl_encoder: Encoder, answer: str) -> None:
    """What stands before the first image that differs is there once; images of one size are not taken for one."""
    asked = [("user", [image(), "what?", image(1)]), ("assistant", "Paris"), ("user", "and?")]
    other = [("user", [image(), "what?", image(2)]), *asked[1:]]
    conversation = pair(asked, "a cat", answer)
    prompt = pair(other, "a cat", answer).messages[:3]
    document = check(vl_encoder, dataclasses.replace(conversation, rejected_prompt=prompt))
    assert [item.source for item in document.media] == [image(), image(1), image(2)]
    assert document.branches is not None
    chosen = document.media[1]
    assert document.branches[0] == chosen.start - 1
    assert document.input_ids[document.branches[0] :][: chosen.tokens].tolist() == (
        document.input_ids[document.branches[1] :][: chosen.tokens].tolist()
    )


def test_prompts_of_images_of_other_sizes(vl_encoder: Encoder) -> None:
    conversation = pair([("user", [image(), "what?"])], "a cat", "a cat")
    large = encoded(noise(112, 224))
    prompt = pair([("user", [large, "what?"])], "a cat", "a cat").messages[:1]
    document = check(vl_encoder, dataclasses.replace(conversation, rejected_prompt=prompt))
    assert len({item.tokens for item in document.media}) == 2
    row = pack([document], decode(document.media, document.sample_id, vl_encoder.media_spec))
    assert len(row.media_positions) == sum(item.tokens for item in document.media)


def test_answers_that_begin_alike_share_no_trained_token(text_encoder: Encoder) -> None:
    conversation = pair([("user", "q")], "the answer is seven", "the answer is Paris")
    prompt = text_encoder.encode_prompt(chat(("user", "q")))
    check(text_encoder, conversation, shared=len(prompt) - 1)


def test_only_the_last_turn_of_long_answers_is_trained_where_asked(text_checkpoint: Path) -> None:
    encoder = make_encoder(text_checkpoint, DataConfig.without_sources(loss_on="last_turn"))
    turns = [("assistant", "one"), ("user", "and?"), ("assistant", "two")]
    document = check(encoder, pair([("user", "q")], turns, [*turns[:2], ("assistant", "three")]))
    assert document.num_loss_tokens == sum(
        len(encoder._tokenizer.encode(answer).ids) + 1 for answer in ("two", "three")
    )


def record(*answers: str, history: int = 0) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": "s"}]
    for number in range(history):
        messages.append({"role": "user", "content": f"question {number} about Paris"})
        messages.append({"role": "assistant", "content": f"answer {number}"})
    messages.append({"role": "user", "content": "q"})
    return {"messages": messages, "chosen": answers[0], "rejected": answers[1]}


def read(encoder: Encoder, value: Any, pairs: Pairs = "shared", **settings: Any) -> Sample:
    reader = SampleReader(
        encoder, settings.get("max_length", 4096), settings.get("on_long", "error"), pairs=pairs
    )
    return reader.read(Record(value, "f:3", 0, Cursor()), Path(), settings.get("format", "auto"))


class TestReading:
    def test_a_pair(self, text_encoder: Encoder) -> None:
        (shared,) = read(text_encoder, record("seven", "two")).documents
        (separate,) = read(text_encoder, record("seven", "two"), "separate").documents
        (chosen,) = read(text_encoder, record("seven", "two"), "chosen").documents
        assert shared.branches is not None and shared.branches[0] > 0
        assert separate.branches == (0, len(chosen))
        assert chosen.branches is None

    @pytest.mark.parametrize("format", ["auto", "messages"])
    def test_a_sample_that_is_no_pair(self, text_encoder: Encoder, format: str) -> None:
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        (error,) = read(text_encoder, {"messages": turns}, format=format).errors
        assert error.reason == "not a pair"
        assert "f:3" in str(error) and "format messages" in str(error) and "task: sft" in str(error)

    def test_history_goes_answers_stay(self, text_encoder: Encoder) -> None:
        value = record("seven", "two", history=4)
        whole = len(read(text_encoder, value).documents[0])
        assert read(text_encoder, value, max_length=whole - 1).errors[0].reason == "too long"
        sample = read(text_encoder, value, max_length=whole - 1, on_long="trim_history")
        (document,) = sample.documents
        assert sample.trimmed == 1 and len(document) < whole
        (shortest,) = read(text_encoder, record("seven", "two")).documents
        assert document.num_loss_tokens == shortest.num_loss_tokens
        fits = read(text_encoder, value, max_length=len(shortest), on_long="trim_history").documents[0]
        np.testing.assert_array_equal(fits.input_ids, shortest.input_ids)
        assert read(text_encoder, value, max_length=len(shortest) - 1, on_long="trim_history").errors

    def test_user_turns_of_an_answer_are_not_history(self, text_encoder: Encoder) -> None:
        turns = [
            {"role": "assistant", "content": "one"},
            {"role": "user", "content": "go on"},
            {"role": "assistant", "content": "two"},
        ]
        value = record("", "two") | {"chosen": turns, "rejected": "three"}
        length = len(read(text_encoder, value).documents[0])
        sample = read(text_encoder, value, max_length=length - 1, on_long="trim_history")
        assert not sample.documents and sample.errors[0].reason == "too long"


def test_a_store_keeps_pairs_and_their_reference(text_encoder: Encoder, tmp_path: Path) -> None:
    documents = [read(text_encoder, record(f"answer {n}", "two")).documents[0] for n in range(3)]
    with StoreWriter(tmp_path / "store") as writer:
        for document in documents:
            writer.add(document)
        writer.finish({})
    store = DocumentStore(tmp_path / "store")
    assert store[1].branches == documents[1].branches
    assert store[1].reference is None
    file = ReferenceFile(store, "key")
    assert file.missing.tolist() == [0, 1, 2]
    file.write([2, 0], np.array([[-1.5, -2.0], [-3.0, -4.0]], np.float32))
    file.close()
    again = ReferenceFile(store, "key")
    assert again.missing.tolist() == [1]
    assert ReferenceFile(store, "another").missing.tolist() == [0, 1, 2]
    store.references = again.values
    assert store[2].reference == (-1.5, -2.0)
    row = pack([store[2], store[0]], [])
    assert row.reference is not None
    assert row.reference.tolist() == [[-1.5, -2.0], [-3.0, -4.0]]
    assert row.branches[1].tolist() == [len(store[2]) + branch for branch in store[0].branches or ()]


def test_a_row_of_chats_has_no_branches(vl_encoder: Encoder) -> None:
    document = vl_encoder.encode(chat(("user", "q"), ("assistant", "a")))
    row = pack([document], [])
    assert row.branches.shape == (0, 2) and row.reference is None


def test_pairs_with_images_from_a_file(vl_encoder: Encoder) -> None:
    value = record("a cat", "apples")
    value["messages"][1]["content"] = [{"type": "image", "image": data_uri(noise(56, 56))}]
    (document,) = read(vl_encoder, value).documents
    assert len(document.media) == 1
