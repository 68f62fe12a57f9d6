from __future__ import annotations

import json
from pathlib import Path

import pytest

from erniekit.data.tokenizer import stop_token_ids
from erniekit.errors import CheckpointError
from erniekit.inference.text import AnswerText
from tests.unit.inference.helpers import make_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("text") / "model", "dense")


@pytest.mark.parametrize(
    "answer", ["7", " 7", "The number is 7.\n", "数字 7", "<think>\n\n</think>", "a  b "]
)
def test_answers_come_back_as_they_are(checkpoint: Path, answer: str) -> None:
    text = AnswerText.from_checkpoint(checkpoint)
    assert text.round_trip(answer) == answer
    ids = text._backend.encode(answer, add_special_tokens=False).ids
    assert text.decode(ids) == text.decode([*ids, 2]) == answer
    assert text.ended([*ids, 2]) and not text.ended(ids) and not text.ended([])


def test_a_token_that_does_not_end_the_answer_is_part_of_it(checkpoint: Path) -> None:
    text = AnswerText.from_checkpoint(checkpoint)
    sentence_end = text._backend.token_to_id("<|end_of_sentence|>")
    assert text.decode([sentence_end, 2]) == "<|end_of_sentence|>"


def test_stop_tokens_are_those_of_the_first_file_that_names_them(tmp_path: Path) -> None:
    assert stop_token_ids(tmp_path, 5) == (5,)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 3}))
    assert stop_token_ids(tmp_path, 5) == (3,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 6]}))
    assert stop_token_ids(tmp_path, 5) == (2, 6)
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"generation_config\.json: cannot be read"):
        stop_token_ids(tmp_path, 5)


def test_no_stop_token_and_no_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    assert stop_token_ids(tmp_path, None) == ()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        AnswerText.from_checkpoint(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None}))
    with pytest.raises(CheckpointError, match="no answer would end"):
        AnswerText.from_checkpoint(tmp_path)
