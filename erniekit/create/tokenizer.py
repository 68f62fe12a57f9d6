"""Trains a tokenizer, and writes both forms that engines read: `tokenizer.json` and `tokenizer.model`.

It is byte-pair encoding with byte fallback over text whose spaces are written as U+2581, as in the released models.
The two forms must give the same ids for any text. sentencepiece merges two neighbours wherever their concatenation is
a piece; `tokenizers` merges listed pairs in the order of the list. They agree because every way to split a piece into
two pieces is listed, in the order of the pieces, and because no piece crosses a boundary of the pre-tokenizer, whose
boundaries depend on two neighbouring characters only. `train_tokenizer` checks the result on the training text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from erniekit.data.chat.families import TEMPLATES
from erniekit.data.chat.jinja import chat_template
from erniekit.errors import ConfigError, DataError

CONTROL_TOKENS = ("<unk>", "<s>", "</s>")
TEXT_TOKENS = (
    *("<mask:0>", "<mask:1>", "<|begin_of_sentence|>", "<|end_of_sentence|>"),
    *("<|image@placeholder|>", "<|video@placeholder|>"),
    *("<think>", "</think>", "<tool_call>", "</tool_call>"),
)
# After all text, as in the released vocabulary: engines take ids from im_patch_id on for media (FastDeploy).
MEDIA_TOKENS = (
    *(
        "<|IMAGE_PLACEHOLDER|>",
        "<|AUDIO_PLACEHOLDER|>",
        "<|CROP_COL_SEP|>",
        "<|CROP_ROW_SEP|>",
        "<|IMAGE_SEP|>",
    ),
    *("<|IMAGE_START|>", "<|IMAGE_END|>", "<|VIDEO_START|>", "<|VIDEO_END|>", "<|ASR_START|>", "<|ASR_END|>"),
    "<|VIDEO_PLACEHOLDER|>",
)
# Whole tokens that belong to the answer: decoding with skip_special_tokens must keep them for engines' parsers.
VISIBLE_TOKENS = frozenset(("<think>", "</think>", "<tool_call>", "</tool_call>"))
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
NAMED_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<unk>",
    "cls_token": "<|begin_of_sentence|>",
    "sep_token": "<|end_of_sentence|>",
    "mask_token": "<mask:1>",
}
# Attributes that transformers' ERNIE VL processor reads from its tokenizer.
MEDIA_ATTRIBUTES = {
    "image_token": "<|IMAGE_PLACEHOLDER|>",
    "image_start_token": "<|IMAGE_START|>",
    "image_end_token": "<|IMAGE_END|>",
    "video_token": "<|VIDEO_PLACEHOLDER|>",
    "video_start_token": "<|VIDEO_START|>",
    "video_end_token": "<|VIDEO_END|>",
}
SPACE = "\u2581"
MAX_PIECE_LENGTH = 16
MIN_PIECES = 39
MIN_VOCAB_SIZE = len(CONTROL_TOKENS + TEXT_TOKENS + MEDIA_TOKENS + BYTE_TOKENS) + MIN_PIECES
# A word with its space, a run of other signs with its space, or one digit, newline or space.
_WORDS = rf"{SPACE}?[\p{{L}}\p{{M}}]+|{SPACE}?[^{SPACE}\p{{L}}\p{{M}}\p{{N}}\n]+|\p{{N}}|\n|{SPACE}"
# What the chat templates put around texts: counted with each text, so that these words become tokens.
_FRAME = ("User:", "Assistant:", "Picture 1:", "Video 1:")


@dataclass(frozen=True)
class TrainedTokenizer:
    """A vocabulary in both forms. `sentencepiece_proto` is the content of `tokenizer.model`."""

    tokenizer: Tokenizer
    sentencepiece_proto: bytes

    def __len__(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def id_of(self, token: str) -> int:
        """Id of a token that must exist."""
        token_id = self.tokenizer.token_to_id(token)
        if token_id is None:
            raise KeyError(token)
        return int(token_id)

    def save(self, directory: Path, *, vision: bool, max_length: int) -> None:
        """Write tokenizer.json, tokenizer.model, tokenizer_config.json, special_tokens_map.json, chat_template.jinja.

        `vision` chooses the VL chat template and names the media tokens; `max_length` is in tokens.
        """
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **NAMED_TOKENS,
            **(MEDIA_ATTRIBUTES if vision else {}),
            "model_max_length": max_length,
            "padding_side": "left",
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
        }
        self.tokenizer.save(str(directory / "tokenizer.json"))
        (directory / "tokenizer.model").write_bytes(self.sentencepiece_proto)
        for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", NAMED_TOKENS)):
            (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (directory / "chat_template.jinja").write_text(
            chat_template(TEMPLATES["ernie_vl" if vision else "ernie"], media=vision), encoding="utf-8"
        )


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> TrainedTokenizer:
    """Train on `texts`; the result has at most `vocab_size` tokens, fewer if the texts have too few words.

    The same texts give the same tokenizer. Raises ConfigError if `vocab_size` is too small, DataError if there is
    no text or the two forms of the tokenizer give different ids for it.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        fixed = MIN_VOCAB_SIZE - MIN_PIECES
        raise ConfigError(
            f"a vocabulary of {vocab_size} is too small: {fixed} tokens are special or bytes, so that at least "
            f"{MIN_VOCAB_SIZE} are needed; 512 is good for small experiments"
        )
    if not any(text.strip() for text in texts):
        raise DataError("the tokenizer text is empty")
    pieces = _train_pieces(texts, vocab_size - MIN_VOCAB_SIZE + MIN_PIECES)
    vocabulary = [*CONTROL_TOKENS, *TEXT_TOKENS, *BYTE_TOKENS, *pieces, *MEDIA_TOKENS]
    trained = TrainedTokenizer(
        _build_tokenizer(vocabulary, pieces), _sentencepiece_proto(vocabulary, frozenset(pieces))
    )
    _check_agreement(trained, texts)
    return trained


def _train_pieces(texts: Sequence[str], limit: int) -> list[str]:
    """At most `limit` pieces: the alphabet, then merges in the order of training."""
    alphabet = _alphabet(texts, limit)
    characters = set("".join(alphabet)) | {" "}
    rare = {ord(c): "\n" for c in set().union(*map(set, texts)) - characters}

    def lines() -> Iterator[str]:
        for text in texts:
            # A rare character becomes bytes when encoding, and no piece may reach across it.
            yield from text.translate(rare).split("\n")
            yield from _FRAME

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = _pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=limit,
        min_frequency=2,
        initial_alphabet=alphabet,
        max_token_length=MAX_PIECE_LENGTH,
        special_tokens=[],
        show_progress=False,
    )
    learner.train_from_iterator(lines(), trainer)
    ids: dict[str, int] = learner.get_vocab()
    return sorted(ids, key=ids.__getitem__)


def _alphabet(texts: Sequence[str], limit: int) -> list[str]:
    """The most frequent characters and all digits; half of the pieces are left for merges."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    for sign in " \n":
        del counts[sign]
    by_frequency = sorted(counts, key=lambda character: (-counts[character], character))
    return sorted({SPACE, *"0123456789", *by_frequency[: limit // 2 - 11]})


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False),
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
        ]
    )


def _build_tokenizer(vocabulary: list[str], pieces: list[str]) -> Tokenizer:
    ids = {token: index for index, token in enumerate(vocabulary)}
    known = frozenset(pieces)
    cuts = ((piece[:at], piece[at:]) for piece in pieces for at in range(1, len(piece)))
    merges = [(left, right) for left, right in cuts if left in known and right in known]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    added = [
        AddedToken(token, normalized=False, special=token not in VISIBLE_TOKENS)
        for token in (*CONTROL_TOKENS, *TEXT_TOKENS, *MEDIA_TOKENS)
    ]
    tokenizer.add_tokens(added)
    return tokenizer


def _sentencepiece_proto(vocabulary: list[str], pieces: frozenset[str]) -> bytes:
    proto = sentencepiece_model_pb2.ModelProto()
    kind = proto.SentencePiece
    for index, token in enumerate(vocabulary):
        score = 0.0
        if token == "<unk>":
            type_ = kind.UNKNOWN
        elif token in CONTROL_TOKENS:
            type_ = kind.CONTROL
        elif token in pieces:
            # The earlier a piece was found, the sooner it is merged.
            type_, score = kind.NORMAL, -float(index)
        elif token in BYTE_TOKENS:
            type_ = kind.BYTE
        else:
            type_ = kind.USER_DEFINED
        proto.pieces.add(piece=token, score=score, type=type_)
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.vocab_size = len(vocabulary)
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.unk_id, proto.trainer_spec.bos_id, proto.trainer_spec.eos_id = 0, 1, 2
    proto.trainer_spec.pad_id = -1
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = True
    return bytes(proto.SerializeToString())


def _check_agreement(trained: TrainedTokenizer, texts: Iterable[str]) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained.sentencepiece_proto)
    for text in texts:
        for control in CONTROL_TOKENS:
            # sentencepiece never parses control tokens in text; tokenizer.json does, as transformers expects.
            text = text.replace(control, "\n")
        ours = trained.tokenizer.encode(text, add_special_tokens=False).ids
        theirs = processor.encode(text)
        if ours != theirs:
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), 0)
            around = trained.tokenizer.decode(ours[max(0, at - 4) : at + 4], skip_special_tokens=False)
            raise DataError(
                f"tokenizer.json and tokenizer.model would disagree on the tokenizer text near {around!r}; "
                "leave that text out, or choose another vocabulary size"
            )
