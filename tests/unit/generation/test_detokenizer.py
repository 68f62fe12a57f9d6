from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from erniekit.data.encode.tokenizer import stop_token_ids
from erniekit.errors import CheckpointError
from erniekit.generation.detokenizer import Detokenizer, partial_match
from tests.unit.generation.helpers import make_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("text") / "model", "dense")


@cache
def _text(checkpoint: Path) -> Detokenizer:
    return Detokenizer.from_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "answer", ["7", " 7", "The number is 7.\n", "数字 7", "<think>\n\n</think>", "a  b "]
)
def test_answers_come_back_as_they_are(checkpoint: Path, answer: str) -> None:
    text = Detokenizer.from_checkpoint(checkpoint)
    assert text.round_trip(answer) == answer
    ids = text._backend.encode(answer, add_special_tokens=False).ids
    assert text.decode(ids) == text.decode([*ids, 2]) == answer
    assert text.ended([*ids, 2]) and not text.ended(ids) and not text.ended([])


# Those of the models that `init` makes, which are those of the released ones.
CONTROL = (
    *("<unk>", "<s>", "<mask:0>", "<|begin_of_sentence|>", "<|end_of_sentence|>", "<|image@placeholder|>"),
    *("<|IMAGE_PLACEHOLDER|>", "<|IMAGE_START|>", "<|VIDEO_END|>", "<|CROP_COL_SEP|>"),
)


def _ids(text: Detokenizer, words: str) -> list[int]:
    return list(text._backend.encode(words, add_special_tokens=False).ids)


def _streamed(text: Detokenizer, ids: list[int], stop: tuple[str, ...] = ()) -> str:
    stream = text.stream(stop)
    return "".join([stream.feed(id) for id in ids]) + stream.finish()


@pytest.mark.parametrize("name", CONTROL)
def test_a_control_token_is_no_text(checkpoint: Path, name: str) -> None:
    text = _text(checkpoint)
    control, before, after = text._backend.token_to_id(name), _ids(text, "One two"), _ids(text, " three")
    ids = [control, *before, control, control, *after, control, 2]
    for found in (text.decode(ids), _streamed(text, ids), text.decode(ids, ["four"])):
        assert found == "One two three"
    assert text.decode_all(ids) == f"{name}One two{name}{name} three{name}</s>"
    assert text.round_trip(f"One {name}two") == "One two"


def test_an_end_token_ends_the_text(checkpoint: Path) -> None:
    text = _text(checkpoint)
    ids = [*_ids(text, "One"), 2, *_ids(text, " two")]
    assert text.decode(ids) == _streamed(text, ids) == text.decode(ids, ["four"]) == "One"
    # What might have been the beginning of a stop text, and is none, is not lost.
    assert _streamed(text, [*_ids(text, "One tw"), 2], ("two",)) == "One tw"


@pytest.mark.parametrize("stop", ["<|end_of_sentence|>", "<|end", "sentence|>"])
def test_a_control_token_is_a_stop_text_too(checkpoint: Path, stop: str) -> None:
    text = _text(checkpoint)
    end = text._backend.token_to_id("<|end_of_sentence|>")
    ids = [*_ids(text, "One t"), end, *_ids(text, "wo")]
    assert text.decode(ids, [stop, "two"]) == "One t"
    stream = text.stream([stop, "two"])
    assert "".join([stream.feed(id) for id in ids]) == "One t"
    assert stream.stopped and stream.finish() == ""


def test_tags_and_coordinates_are_part_of_an_answer_whatever_the_tokenizer_calls_them(
    checkpoint: Path, tmp_path: Path
) -> None:
    file = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    first = max(file["model"]["vocab"].values()) + 1
    for token in file["added_tokens"]:
        token["special"] = not token["special"]  # <think> is, and <s> is not
    names = ("<|LOC_5|>", "<|LOC_SEP|>", "<response>", "<|im_end|>", "<|mine|>")
    for id, name in enumerate(names, first):
        more = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        file["added_tokens"].append({"id": id, "content": name, "special": name != "<|mine|>", **more})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(file)))
    text = Detokenizer(tokenizer, (2,))
    said = "<think>\nOne\n</think>\n<response><tool_call> <|LOC_5|><|LOC_SEP|><|mine|>"
    ids = _ids(text, said + "<|im_end|><s><|IMAGE_START|>")
    assert text.decode(ids) == _streamed(text, ids) == said


def test_bytes_of_a_character_are_one_across_a_control_token(checkpoint: Path) -> None:
    text = _text(checkpoint)
    ids = _ids(text, "😀")
    control = text._backend.token_to_id("<|IMAGE_START|>")
    ids = [*ids[:2], control, *ids[2:]]
    stream = text.stream()
    assert [stream.feed(id) for id in ids] == [""] * (len(ids) - 1) + ["😀"]
    assert text.decode(ids) == "😀"


def test_stop_tokens_are_those_of_the_first_file_that_names_them(tmp_path: Path) -> None:
    assert stop_token_ids(tmp_path, 5) == (5,)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 3}))
    assert stop_token_ids(tmp_path, 5) == (3,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 6]}))
    assert stop_token_ids(tmp_path, 5) == (2, 6)
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"generation_config\.json:1: not valid JSON"):
        stop_token_ids(tmp_path, 5)


def test_no_stop_token_and_no_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    assert stop_token_ids(tmp_path, None) == ()
    with pytest.raises(CheckpointError, match="cannot load the tokenizer"):
        Detokenizer.from_checkpoint(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None}))
    with pytest.raises(CheckpointError, match="answers would never end"):
        Detokenizer.from_checkpoint(tmp_path)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.text(max_size=4) | st.sampled_from(["数字", "😀", " one", "\n", "stop", "sto", "ab", "</s"]),
        max_size=12,
    ),
    st.lists(st.sampled_from(["stop", "数", "one t", "abab", "\n\n", "s"]), max_size=3),
)
def test_pieces_joined_are_the_whole(checkpoint: Path, words: list[str], stop: list[str]) -> None:
    text = _text(checkpoint)
    ids = text._backend.encode("".join(words), add_special_tokens=False).ids
    stream, streamed, used = text.stream(stop), "", 0
    for id in ids:
        piece = stream.feed(id)
        assert "\N{REPLACEMENT CHARACTER}" not in piece
        streamed += piece
        used += 1
        if stream.stopped:
            break
    streamed += stream.finish()
    whole = text.decode(ids[:used])
    stopping = [mark for mark in stop if mark in whole]
    assert streamed == text.decode(ids[:used], stop) == whole[: min([*map(whole.find, stopping), len(whole)])]
    assert stream.stopped == bool(stopping)
    assert stream.stopped or used == len(ids)
    assert stream.feed(ids[0] if ids else 2) == stream.finish() == "" or not stream.stopped


def test_a_stop_text_may_lie_across_tokens_and_is_never_shown(checkpoint: Path) -> None:
    text = _text(checkpoint)
    ids = [text._backend.encode(part, add_special_tokens=False).ids for part in ("Which", " di", "git is")]
    stream = text.stream(["digit"])
    streamed = [stream.feed(id) for part in ids for id in part]
    assert "".join(streamed) == "Which "
    assert stream.stopped and stream.finish() == ""
    flat = [id for part in ids for id in part]
    assert text.decode([*flat, 2], ["nothing", "digit", "git"]) == "Which "
    # What looked like a stop text and is none is shown in the end.
    stream = text.stream(["digital"])
    assert "".join([stream.feed(id) for id in flat]) + stream.finish() == "Which digit is"


def test_half_a_character_waits_for_the_rest(checkpoint: Path) -> None:
    text = _text(checkpoint)
    ids = text._backend.encode("😀", add_special_tokens=False).ids
    assert len(ids) > 1
    stream = text.stream()
    assert [stream.feed(id) for id in ids] == [""] * (len(ids) - 1) + ["😀"]
    broken = text.stream()
    assert [broken.feed(id) for id in ids[:-1]] == [""] * (len(ids) - 1)
    assert broken.finish() == text.decode(ids[:-1]) != ""
    assert text.stream().feed(2) == ""
    # Bytes that never become a character are shown all the same, and what follows them too.
    endless = text.stream()
    streamed = "".join([endless.feed(id) for id in ids[1:2] * 40 + ids])
    assert streamed.startswith("\N{REPLACEMENT CHARACTER}" * 32)


def test_any_tokens_can_be_read(checkpoint: Path) -> None:
    text = _text(checkpoint)
    ids = np.arange(3, text._backend.get_vocab_size())
    plain = np.array([id for id in ids.tolist() if not text._backend.id_to_token(id).startswith("<0x")])
    for seed in range(30):
        drawn = np.random.default_rng(seed).choice(plain if seed % 2 else ids, 60).tolist()
        stream = text.stream()
        streamed = "".join([stream.feed(id) for id in drawn]) + stream.finish()
        if seed % 2:
            assert streamed == text.decode(drawn)
        else:
            # Single bytes that are no characters may be shown otherwise, but nothing else is lost.
            words = [text.decode([id]) for id in drawn if id in plain]
            assert all(word.strip() in streamed for word in words)


@pytest.mark.parametrize(
    ("text", "mark", "held"), [("a<t", "<tag>", 2), ("a<tag>", "<tag>", 0), ("<<", "<tag>", 1), ("", "x", 0)]
)
def test_what_may_be_the_beginning_of_a_mark(text: str, mark: str, held: int) -> None:
    assert partial_match(text, mark) == held
