from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.config import DataConfig
from erniekit.config.choices import OnLong
from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.document import IGNORE, Document
from erniekit.data.encode.encoder import Encoder, make_encoder
from erniekit.data.encode.samples import Sample, SampleReader, cut
from erniekit.data.files.reader import BadLine, Cursor, Record
from tests.unit.data.helpers import data_uri, noise

WORDS = ["one", "two", "three", "four"]


def read(encoder: Encoder, value: Any, max_length: int = 4096, on_long: OnLong = "error") -> Sample:
    reader = SampleReader(encoder, max_length, on_long)
    return reader.read(Record(value, "f:1", 0, Cursor()), Path(), "auto")


def turns(*texts: str, system: str | None = None) -> dict[str, Any]:
    """A chat of (user, assistant) in turn."""
    messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    messages += [
        {"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)
    ]
    return {"messages": messages}


def text_of(encoder: Encoder, document: Document) -> str:
    return encoder._tokenizer.decode(document.input_ids.tolist(), skip_special_tokens=False)


def test_a_sample_is_counted(vl_encoder: Encoder) -> None:
    image = {"type": "image", "image": data_uri(noise(56, 56))}
    value = turns("q", "a", "r", "b", system="s")
    value["messages"][1]["content"] = [image, {"type": "text", "text": "q"}]
    sample = read(vl_encoder, value)
    assert sample.errors == ()
    assert sample.messages == {"system": 1, "user": 2, "assistant": 2}
    assert len(sample.documents) == 1
    assert (sample.trimmed, sample.tool_calls, sample.is_pair) == (0, 0, False)
    (document,) = sample.documents
    assert sample.whole == ((len(document), 4),)
    # Its length is reported even if it is not used.
    assert (
        read(vl_encoder, value, 9).whole == read(vl_encoder, value, 9, "trim_history").whole == sample.whole
    )
    pieces = read(vl_encoder, {"text": " ".join(WORDS * 9)}, 9)
    assert len(pieces.documents) > 1 and len(pieces.whole) == 1
    assert pieces.whole[0][0] == sum(len(piece) - 1 for piece in pieces.documents) + 1


def test_bad_lines_and_bad_records_are_errors_in_the_result(vl_encoder: Encoder) -> None:
    error = SampleError("f:9", "invalid JSON", "x")
    assert SampleReader(vl_encoder, 99, "error").read(BadLine(error, 0, Cursor()), Path(), "auto").errors == (
        error,
    )
    assert [error.reason for error in read(vl_encoder, {"x": 1}).errors] == ["unknown format"]


class TestTooLong:
    def test_is_an_error_that_says_what_to_do(self, text_encoder: Encoder) -> None:
        sample = read(text_encoder, turns("q", "a"), max_length=5)
        assert sample.documents == ()
        assert sample.errors[0].reason == "too long"
        assert (
            "tokens, more than data.max_length=5: shorten it, raise data.max_length, or set data.on_long"
            in str(sample.errors[0])
        )

    def test_trimming_takes_the_fewest_oldest_exchanges(self, text_encoder: Encoder) -> None:
        value = turns("one", "a one", "two", "a two", "three", "a three", "four", "a four", system="be short")
        whole = read(text_encoder, value).documents[0]
        for max_length in range(len(whole), 8, -1):
            sample = read(text_encoder, value, max_length, "trim_history")
            if sample.errors:
                break
            (document,) = sample.documents
            assert len(document) <= max_length
            text = text_of(text_encoder, document)
            assert text.startswith("<|begin_of_sentence|>be short\nUser: ")
            kept = [word for word in WORDS if f"a {word}" in text]
            assert kept == WORDS[-len(kept) :]
            assert sample.trimmed == (len(kept) < 4)
            # One more exchange would not have fitted.
            if len(kept) < 4:
                longer = WORDS[-len(kept) - 1 :]
                more = turns(*(text for word in longer for text in (word, f"a {word}")), system="be short")
                assert len(read(text_encoder, more).documents[0]) > max_length
        assert kept == ["four"]
        assert "its last exchange alone does not fit" in str(sample.errors[0])

    def test_an_image_goes_with_its_turn_or_stays_whole(self, vl_encoder: Encoder) -> None:
        image = {"type": "image", "image": data_uri(noise(140, 140))}
        value = turns("", "a", "", "b")
        for number in (0, 2):
            value["messages"][number]["content"] = [image, {"type": "text", "text": "what?"}]
        whole = read(vl_encoder, value).documents[0]
        assert [item.tokens for item in whole.media] == [25, 25]
        sample = read(vl_encoder, value, len(whole) - 1, "trim_history")
        (document,) = sample.documents
        assert [item.tokens for item in document.media] == [25]
        # Images are numbered anew, as in a chat that begins there.
        assert "Picture 1:" in text_of(vl_encoder, document)
        assert "Picture 2:" not in text_of(vl_encoder, document)
        start, tokens = document.media[0].start, document.media[0].tokens
        assert len(set(document.input_ids[start : start + tokens].tolist())) == 1
        assert read(vl_encoder, value, 20, "trim_history").errors[0].reason == "too long"

    def test_a_tool_result_stays_with_its_call(self, text_encoder: Encoder) -> None:
        call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
        value = {
            "messages": [
                {"role": "user", "content": "first " * 20},
                {"role": "assistant", "content": "a"},
                {"role": "user", "content": "second"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "result"},
                {"role": "assistant", "content": "done"},
            ]
        }
        whole = read(text_encoder, value).documents[0]
        (document,) = read(text_encoder, value, len(whole) - 1, "trim_history").documents
        text = text_of(text_encoder, document)
        assert "first" not in text
        assert text.index("second") < text.index("<tool_call>") < text.index("result") < text.index("done")

    def test_each_answer_is_trimmed_for_itself(self, text_checkpoint: Path) -> None:
        encoder = make_encoder(text_checkpoint, DataConfig.without_sources(loss_on="each_turn"))
        value = turns("one", "a one", "two", "a two", "three", "a three")
        lengths = [len(document) for document in read(encoder, value).documents]
        assert len(lengths) == 3 and lengths == sorted(lengths)
        sample = read(encoder, value, lengths[1], "trim_history")
        assert len(sample.documents) == 3
        assert sample.trimmed == 1
        sample = read(encoder, value, lengths[1], "error")
        assert len(sample.documents) == 2
        assert [error.reason for error in sample.errors] == ["too long"]


class TestPlainText:
    def test_is_trained_whole_and_cut_where_it_is_long(self, text_encoder: Encoder) -> None:
        words = " ".join(f"word {number}" for number in range(60))
        (whole,) = read(text_encoder, {"text": words}).documents
        pieces = read(text_encoder, {"text": words}, 50).documents
        assert len(pieces) > 3
        assert all(len(piece) <= 50 for piece in pieces)
        # Every token is predicted once, from the token before it.
        pairs = [
            (int(token), int(label))
            for piece in pieces
            for token, label in zip(piece.input_ids, piece.labels, strict=True)
            if label != IGNORE
        ]
        assert pairs == [
            (int(token), int(label))
            for token, label in zip(whole.input_ids, whole.labels, strict=True)
            if label != IGNORE
        ]
        # The last piece is trained to be followed by the end of the text.
        assert whole.num_loss_tokens == len(whole)
        assert pairs[-1][1] == 2

    @pytest.mark.parametrize("length", [2, 3, 49, 50, 51, 99, 100])
    def test_cutting_at_any_length(self, length: int) -> None:
        ids = np.arange(length, dtype=np.int32)
        labels = np.append(ids[1:], 1000).astype(np.int32)
        pieces = list(cut(Document(ids, labels, (), "f:1"), 50))
        trained = [int(label) for piece in pieces for label in piece.labels if label != IGNORE]
        assert trained == labels.tolist()
        assert all(1 < len(piece) <= 50 for piece in pieces)
        assert all(piece.labels[-1] == IGNORE for piece in pieces[:-1])


def test_a_preference_pair_learns_the_chosen_answer(text_encoder: Encoder) -> None:
    value = {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    }
    sample = read(text_encoder, value)
    assert sample.is_pair
    assert "good" in text_of(text_encoder, sample.documents[0])
    assert "bad" not in text_of(text_encoder, sample.documents[0])
