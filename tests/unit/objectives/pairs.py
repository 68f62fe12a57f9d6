"""Rows of preference pairs without a tokenizer, in the forms that must come out the same."""

from __future__ import annotations

import dataclasses

import numpy as np

from erniekit.data.encode.document import IGNORE, Document
from erniekit.data.load.batch import PackedBatch, pack
from erniekit.data.media.item import Media
from tests.unit.objectives.rows import END, PLACEHOLDER, START

GRID = (1, 4, 4)
TOKENS = 4


def answer_document(prompt: list[int], answer: list[int], media: tuple[Media, ...], name: str) -> Document:
    """Prompt and one answer, as `Encoder.encode` gives them."""
    ids = np.array([*prompt, *answer], np.int32)
    labels = np.full(len(ids), IGNORE, np.int32)
    labels[len(prompt) - 1 : -1] = answer
    return Document(ids, labels, media, name)


def make_answers(count: int, seed: int = 0, *, images: bool = False) -> list[tuple[Document, Document]]:
    """Pairs of documents with one prompt and different answers; with `images` each second prompt has one."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        prompt = rng.integers(20, 60, int(rng.integers(3, 12))).tolist()
        media: tuple[Media, ...] = ()
        if images and number % 2 == 0:
            media = (Media(f"{number}.png", GRID, 3, TOKENS, 2),)
            prompt = [*prompt[:2], START, *[PLACEHOLDER] * TOKENS, END, *prompt[2:]]
        answers = (rng.integers(20, 60, int(rng.integers(1, 9))).tolist() for _ in range(2))
        found.append(tuple(answer_document(prompt, answer, media, f"a:{number}") for answer in answers))
    return found  # type: ignore[return-value]


def pair_document(chosen: Document, rejected: Document, *, share: bool) -> Document:
    """Both as one document, `share`: with their prompt once."""
    start = int(np.argmax(chosen.labels != IGNORE)) if share else 0
    moved = tuple(
        dataclasses.replace(item, start=item.start + len(chosen)) for item in rejected.media if not share
    )
    return Document(
        np.concatenate([chosen.input_ids, rejected.input_ids[start:]]),
        np.concatenate([chosen.labels, rejected.labels[start:]]),
        (*chosen.media, *moved),
        chosen.sample_id,
        branches=(start, len(chosen)),
    )


def pair_row(answers: list[tuple[Document, Document]], *, share: bool) -> PackedBatch:
    """All pairs in one row."""
    return with_pixels([pair_document(*pair, share=share) for pair in answers])


def answer_row(answers: list[tuple[Document, Document]]) -> PackedBatch:
    """Each answer as an ordinary document, chosen and rejected in turn."""
    return with_pixels([document for pair in answers for document in pair])


def with_pixels(documents: list[Document]) -> PackedBatch:
    """A row whose images have the pixels that their names stand for."""
    patches = [
        np.random.default_rng(int(str(item.source).split(".")[0]))
        .integers(0, 256, (16, 588))
        .astype(np.uint8)
        for document in documents
        for item in document.media
    ]
    return pack(documents, patches)
