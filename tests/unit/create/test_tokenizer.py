from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from erniekit.create import tokenizer as module
from erniekit.create.tokenizer import (
    CONTROL_TOKENS,
    MEDIA_TOKENS,
    MIN_VOCAB_SIZE,
    TrainedTokenizer,
    train_tokenizer,
)
from erniekit.errors import ConfigError, DataError

from .conftest import TEXT

# Text that repeats itself in ways that tempt the two forms to merge differently.
PERIODIC = "banana ananas aaaa aaaaaaa ------- ...... abab ababab abcabcabc xyxyx\n" * 3


@pytest.fixture(scope="module")
def trained() -> TrainedTokenizer:
    return train_tokenizer([TEXT * 3, PERIODIC], 512)


@pytest.fixture(scope="module")
def processor(trained: TrainedTokenizer) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=trained.sentencepiece_proto)


def encode(trained: TrainedTokenizer, text: str) -> list[int]:
    return list(trained.tokenizer.encode(text, add_special_tokens=False).ids)


def tokens(trained: TrainedTokenizer, text: str) -> list[str]:
    return list(trained.tokenizer.encode(text, add_special_tokens=False).tokens)


LIKE_TRAINING = st.text(alphabet=st.sampled_from("aban xyc-.\n01 the图片红\u2581\té"), max_size=60)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(text=st.one_of(LIKE_TRAINING, st.text(max_size=40)))
def test_both_forms_give_the_same_ids(
    text: str, trained: TrainedTokenizer, processor: sentencepiece.SentencePieceProcessor
) -> None:
    # sentencepiece takes a NUL for the end of the text.
    text = text.replace("\0", "")
    assert encode(trained, text) == processor.encode(text)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40))
def test_text_comes_back_whole(text: str, trained: TrainedTokenizer) -> None:
    # A literal U+2581 is a space to this kind of tokenizer.
    ids = encode(trained, text)
    assert trained.tokenizer.decode(ids, skip_special_tokens=False) == text.replace("\u2581", " ")


@pytest.mark.parametrize("special", [*module.TEXT_TOKENS, *MEDIA_TOKENS])
def test_special_tokens_are_one_token_in_both_forms(
    special: str, trained: TrainedTokenizer, processor: sentencepiece.SentencePieceProcessor
) -> None:
    text = f"The{special}circle"
    assert encode(trained, text) == processor.encode(text)
    assert trained.id_of(special) in encode(trained, text)


def test_places_of_special_tokens(trained: TrainedTokenizer) -> None:
    names = ["<unk>", "<s>", "</s>", "<mask:0>", "<mask:1>", "<|begin_of_sentence|>", "<|end_of_sentence|>"]
    assert [trained.id_of(name) for name in names] == list(range(7))
    # Media last: engines may take every id from im_patch_id on for media.
    assert [trained.id_of(name) for name in MEDIA_TOKENS] == list(
        range(len(trained) - len(MEDIA_TOKENS), len(trained))
    )
    assert trained.id_of("<|IMAGE_PLACEHOLDER|>") == len(trained) - len(MEDIA_TOKENS)


def test_digits_newlines_and_spaces_stand_alone(trained: TrainedTokenizer) -> None:
    assert tokens(trained, "2024") == ["2", "0", "2", "4"]
    assert tokens(trained, " 7.\n\n") == ["\u2581", "7", ".", "<0x0A>", "<0x0A>"]
    assert tokens(trained, "User: The number") == ["User", ":", "\u2581The", "\u2581number"]


def test_reasoning_tags_survive_decoding_and_frame_tokens_do_not(trained: TrainedTokenizer) -> None:
    ids = encode(trained, "<think>a</think>b<|end_of_sentence|>")
    assert trained.tokenizer.decode(ids, skip_special_tokens=True) == "<think>a</think>b"


def test_same_texts_same_bytes_and_no_more_tokens_than_asked() -> None:
    one, two = (train_tokenizer([TEXT], 400) for _ in range(2))
    assert one.sentencepiece_proto == two.sentencepiece_proto
    assert one.tokenizer.to_str() == two.tokenizer.to_str()
    assert len(one) <= 400


def test_a_large_alphabet_leaves_room_for_words() -> None:
    many = "".join(chr(0x4E00 + i) for i in range(3000)) + "the number is the number " * 9
    trained = train_tokenizer([many], 512)
    assert len(trained) <= 512
    assert "\u2581number" in trained.tokenizer.get_vocab()
    assert trained.tokenizer.decode(encode(trained, "\u4e05\u5000")) == "\u4e05\u5000"


def test_control_tokens_in_the_text_are_no_obstacle() -> None:
    trained = train_tokenizer(["old <s>price</s> new <unk> price, old price"] * 3, MIN_VOCAB_SIZE)
    assert trained.tokenizer.decode(encode(trained, "old price")) == "old price"


def test_too_small_empty_and_disagreeing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=f"at least {MIN_VOCAB_SIZE}"):
        train_tokenizer([TEXT], MIN_VOCAB_SIZE - 1)
    with pytest.raises(DataError, match="empty"):
        train_tokenizer(["", " \n"], 512)
    proto = module._sentencepiece_proto
    # Pieces reversed: other merges come first.
    monkeypatch.setattr(
        module, "_sentencepiece_proto", lambda vocabulary, pieces: proto(vocabulary[::-1], pieces)
    )
    with pytest.raises(DataError, match=r"tokenizer.json and tokenizer.model would disagree .* near 'The"):
        train_tokenizer([TEXT], 512)


@pytest.mark.parametrize("vision", [False, True])
def test_transformers_loads_what_is_saved(vision: bool, trained: TrainedTokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    trained.save(tmp_path, vision=vision, max_length=4096)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "User: Which digit is this?\nAssistant: 7<|end_of_sentence|>图片"
    assert loaded.encode(text, add_special_tokens=False) == encode(trained, text)
    assert loaded.encode(text) == encode(trained, text)
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("<s>", "</s>", "<unk>")
    assert (loaded.cls_token, loaded.sep_token) == ("<|begin_of_sentence|>", "<|end_of_sentence|>")
    assert loaded.model_max_length == 4096
    assert loaded.chat_template == (tmp_path / "chat_template.jinja").read_text()
    if vision:
        assert loaded.image_token == "<|IMAGE_PLACEHOLDER|>"
        assert loaded.video_end_token_id == trained.id_of("<|VIDEO_END|>")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert processor.get_piece_size() == len(trained)
    assert (processor.unk_id(), processor.bos_id(), processor.eos_id()) == (0, 1, 2)
    assert all(processor.id_to_piece(trained.id_of(token)) == token for token in CONTROL_TOKENS)
    assert json.loads((tmp_path / "special_tokens_map.json").read_text())["eos_token"] == "</s>"
