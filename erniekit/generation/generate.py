"""Generates answers to many prompts at once: packed prefill, then one token per sequence and step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import paddle
from paddle import Tensor

from erniekit.data.encode.document import Document
from erniekit.data.load.loader import load_row
from erniekit.data.media.item import MediaSpec
from erniekit.generation.detokenizer import Detokenizer
from erniekit.generation.kv_cache import KeyValueCache, PrefillAttention
from erniekit.generation.sampling import Sampler, Sampling
from erniekit.models.ernie import ErnieModel
from erniekit.models.row import RowInputs
from erniekit.objectives.device_batch import row_inputs

# Called after each step with the number of finished sequences.
OnProgress = Callable[[int], None]
# The tokens that this process picked in a step, int64 [N] -> the tokens that all processes use.
Agree = Callable[[np.ndarray], np.ndarray]


class Decoding:
    """A batch of sequences: their keys and values, and the logits of their next tokens.

    `logits` [N, vocab]: in the order of the rows, and of the prompts in each row. Use it inside `inference_mode`.
    """

    def __init__(self, model: ErnieModel, rows: Sequence[RowInputs]) -> None:
        """Prefill: runs the model over the prompts, at least one and none empty."""
        self._model = model
        prefilled, hidden, positions = [], [], []
        for row in rows:
            attend = PrefillAttention(row.cu_seqlens, model.config.num_attention_heads)
            last = paddle.to_tensor(row.cu_seqlens[1:].astype(np.int64) - 1)
            hidden.append(paddle.index_select(model(row, attend=attend).hidden, last))
            prefilled.append(attend)
            positions.append(np.maximum.reduceat(row.position_ids.max(0), row.cu_seqlens[:-1]) + 1)
        self._positions = np.concatenate(positions).astype(np.int64)
        self._cache = KeyValueCache(prefilled)
        self.logits = model.logits(paddle.concat(hidden))

    def step(self, tokens: np.ndarray) -> Tensor:
        """Appends one text token to each sequence, int64 [N]; returns the new `logits` [N, vocab]."""
        self._cache.open_slot()
        hidden = self._model(_text_row(tokens, self._positions), attend=self._cache).hidden
        self._positions = self._positions + 1
        self.logits = self._model.logits(hidden)
        return self.logits

    def keep(self, sequences: np.ndarray) -> None:
        """Keeps only the sequences at these indices, int64 [n] ascending."""
        self._cache.keep(sequences)
        self._positions = self._positions[sequences]


@dataclass(frozen=True, slots=True)
class Generated:
    """The answer to a prompt. finish: "stop" if the model or a stop text ended it, "length" if the limit did.

    `ids` include the end token, and the tokens of the stop text.
    """

    ids: list[int]
    finish: Literal["stop", "length"]


class Generator:
    """Generates with one model.

    `eos_token_ids` end a sequence; `media_spec` is the encoder's, None for a text model; `detokenizer` is needed for
    stop texts only. Prompts are packed into rows of at most `row_tokens` tokens; a longer prompt has a row to itself.
    To bound memory, a batch has at most `batch_size` sequences, and `batch_tokens` tokens of prompts and answers.
    `agree` is for processes that run the same prompts together: their logits differ by rounding, and if one process
    ended an answer early, the others would wait for it forever.
    """

    def __init__(
        self,
        model: ErnieModel,
        eos_token_ids: Sequence[int],
        media_spec: MediaSpec | None = None,
        *,
        detokenizer: Detokenizer | None = None,
        row_tokens: int = 4096,
        batch_size: int = 128,
        batch_tokens: int = 1 << 16,
        agree: Agree | None = None,
    ) -> None:
        self.model = model
        self.eos_token_ids = tuple(eos_token_ids)
        self.media_spec = media_spec
        self.detokenizer = detokenizer
        self.row_tokens, self.batch_size, self.batch_tokens = row_tokens, batch_size, batch_tokens
        self._agree = agree

    def generate(
        self,
        documents: Sequence[Document],
        sampling: Sampling,
        on_progress: OnProgress | None = None,
        *,
        indices: Sequence[int] | None = None,
    ) -> list[Generated]:
        """The answer to each prompt (from `Encoder.encode_prompt`), in the order given.

        `indices`: see `generate_rows`. Images are opened here. Raises SampleError if one cannot be read.
        """
        lengths = [len(document) for document in documents]
        places = range(len(documents)) if indices is None else indices
        answers: dict[int, Generated] = {}

        def progress(finished: int) -> None:
            if on_progress is not None:
                on_progress(len(answers) + finished)

        for batch in self._batches(lengths, sampling.max_new_tokens):
            rows = [
                row_inputs(load_row([documents[index] for index in row], self.media_spec))
                for row in split_rows(batch, lengths, self.row_tokens)
            ]
            found = self.generate_rows(rows, sampling, progress, indices=[places[index] for index in batch])
            answers.update(zip(batch, found, strict=True))
        return [answers[index] for index in range(len(documents))]

    def generate_rows(
        self,
        rows: Sequence[RowInputs],
        sampling: Sampling,
        on_progress: OnProgress | None = None,
        *,
        indices: Sequence[int] | None = None,
    ) -> list[Generated]:
        """The answers to all prompts of packed rows, as one batch, in order.

        `indices`: numbers of the prompts, from which their random streams come. Default: their order.
        """
        total = sum(len(row.cu_seqlens) - 1 for row in rows)
        ids: list[list[int]] = [[] for _ in range(total)]
        stopped = np.zeros(total, bool)
        with inference_mode(self.model):
            for step in self._steps(rows, sampling, range(total) if indices is None else indices):
                for sequence, token in zip(step.active.tolist(), step.tokens.tolist(), strict=True):
                    ids[sequence].append(token)
                stopped[step.active] = step.stopped
                if on_progress is not None:
                    on_progress(int(stopped.sum()))
        if on_progress is not None and not stopped.all():
            on_progress(total)
        return [
            Generated(tokens, "stop" if ended else "length")
            for tokens, ended in zip(ids, stopped, strict=True)
        ]

    def stream(self, document: Document, sampling: Sampling) -> Iterator[int]:
        """The tokens of the answer to one prompt, one by one, the same as `generate` gives. Close it to stop.

        Images are opened here. Raises SampleError if one cannot be read.
        """
        return self._stream(row_inputs(load_row([document], self.media_spec)), sampling)

    def _stream(self, row: RowInputs, sampling: Sampling) -> Iterator[int]:
        steps = self._steps([row], sampling, [0])
        while True:
            # Not around the yield: the caller's code must not run in inference mode.
            with inference_mode(self.model):
                step = next(steps, None)
            if step is None:
                return
            yield int(step.tokens[0])

    def _steps(
        self, rows: Sequence[RowInputs], sampling: Sampling, indices: Sequence[int]
    ) -> Iterator[_Step]:
        """One step per token of the active sequences. Advance it inside `inference_mode`."""
        prompts = [ids for row in rows for ids in np.split(row.input_ids, row.cu_seqlens[1:-1])]
        sampler = Sampler(sampling, prompts, indices)
        texts = []
        if sampling.stop:
            if self.detokenizer is None:
                raise ValueError("stop texts need a Generator with a detokenizer")
            texts = [self.detokenizer.stream(sampling.stop) for _ in prompts]
        decoding = Decoding(self.model, rows)
        active = np.arange(len(prompts))
        for produced in range(1, sampling.max_new_tokens + 1):
            tokens = sampler.pick(decoding.logits, active)
            if self._agree is not None:
                tokens = self._agree(tokens)
            stopped = np.isin(tokens, self.eos_token_ids)
            if texts:
                for place, sequence in enumerate(active.tolist()):
                    texts[sequence].feed(int(tokens[place]))
                    stopped[place] |= texts[sequence].stopped
            yield _Step(active, tokens, stopped)
            going = np.flatnonzero(~stopped)
            if produced == sampling.max_new_tokens or not going.size:
                return
            if going.size < active.size:
                active, tokens = active[going], tokens[going]
                decoding.keep(going)
            decoding.step(tokens)

    def _batches(self, lengths: Sequence[int], max_new_tokens: int) -> list[list[int]]:
        """Indices of the prompts of each batch, longest first: similar lengths waste little cache."""
        batches: list[list[int]] = []
        for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            full = True
            if batches:
                room = (lengths[batches[-1][0]] + max_new_tokens) * (len(batches[-1]) + 1)
                full = len(batches[-1]) == self.batch_size or room > self.batch_tokens
            if full:
                batches.append([])
            batches[-1].append(index)
        return batches


@dataclass(frozen=True, slots=True)
class _Step:
    """The tokens of one step, int64 [N]; `active`: their sequences; `stopped`: which tokens are the last ones."""

    active: np.ndarray
    tokens: np.ndarray
    stopped: np.ndarray


def split_rows(documents: Iterable[int], lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Packs documents, given as indices of `lengths`, into rows of at most `row_tokens` tokens, in order.

    A longer document has a row to itself.
    """
    rows: list[list[int]] = []
    filled = 0
    for index in documents:
        if not rows or filled + lengths[index] > row_tokens:
            rows.append([])
            filled = 0
        rows[-1].append(index)
        filled += lengths[index]
    return rows


def _text_row(tokens: np.ndarray, positions: np.ndarray) -> RowInputs:
    """One text token per sequence, with the same position on all three axes."""
    sequences = len(tokens)
    return RowInputs(
        input_ids=tokens.astype(np.int64),
        position_ids=np.tile(positions, (3, 1)),
        modality=np.zeros(sequences, np.int8),
        cu_seqlens=np.arange(sequences + 1, dtype=np.int32),
        patches=np.zeros((0, 0), np.uint8),
        grid_thw=np.zeros((0, 3), np.int32),
        media_positions=np.zeros(0, np.int64),
    )


@contextmanager
def inference_mode(model: ErnieModel) -> Iterator[None]:
    """Without gradients and dropout; restores the model's mode at the end."""
    training = model.training
    if training:
        model.eval()
    try:
        with paddle.no_grad():
            yield
    finally:
        if training:
            model.train()
