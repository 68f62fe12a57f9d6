"""Samples the next token of each sequence from its logits, greedily or at random.

Filters and their order are those of transformers (generation.logits_process): RepetitionPenaltyLogitsProcessor,
TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import paddle
from paddle import Tensor

from erniekit.data.chat.template import Template
from erniekit.errors import ConfigError

GREEDY_BELOW = 1e-5
"""Smaller temperatures are 0, as in vLLM: logits divided by them are no numbers any more."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are generated.

    temperature: 0 (as anything below GREEDY_BELOW) always takes the most probable token; top_p: keeps the fewest of the
    most probable tokens with this total probability; top_k: keeps this number of tokens (0: all); repetition_penalty:
    logits of tokens in the prompt and the answer are divided by it if positive, multiplied if negative; stop: texts
    that end an answer, and are removed from it; seed: the same seed gives the same answers; min_p: keeps tokens with at
    least this fraction of the highest probability (0: all). Raises ConfigError for values out of range.
    """

    max_new_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature <= 1e4, "from 0 (greedy) to 10,000"),
            ("top_p", 0 < self.top_p <= 1, "over 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "from 0.01 to 100"),
            ("stop", all(self.stop), "texts that are not empty"),
            ("seed", self.seed >= 0, "0 or more"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 (all) to 1"),
        ):
            if not good:
                raise ConfigError(f"{name} must be {wanted}, not {getattr(self, name)!r}")


def chat_sampling(sampling: Sampling, template: Template) -> Sampling:
    """`sampling` for a chat: the template's terminator also ends an answer.

    Models without fine-tuning may continue with a turn of the user after it.
    """
    return replace(sampling, stop=(*sampling.stop, template.terminator))


class Sampler:
    """Picks the next tokens of a batch.

    A token depends on the logits of its sequence, the seed, the sequence's index and its number of tokens so far, not
    on the rest of the batch.
    """

    def __init__(self, sampling: Sampling, prompts: Sequence[np.ndarray], indices: Sequence[int]) -> None:
        """`prompts`: their token ids, for the repetition penalty; `indices`: numbers that seed their random streams."""
        self._sampling = sampling
        self._random = [np.random.default_rng((sampling.seed, index)) for index in indices]
        self._seen = [np.unique(prompt) for prompt in prompts]

    def pick(self, logits: Tensor, sequences: np.ndarray) -> np.ndarray:
        """One token for each row of `logits` [N, vocab], which belong to `sequences`, int64 [N] -> int64 [N]."""
        sampling = self._sampling
        greedy, penalised = sampling.temperature < GREEDY_BELOW, sampling.repetition_penalty != 1
        if greedy and not penalised:
            tokens: np.ndarray = paddle.argmax(logits, axis=-1).numpy()
            return tokens
        rows = logits.astype("float32").numpy()
        picked = np.empty(len(sequences), np.int64)
        for row, sequence in enumerate(sequences.tolist()):
            scores = rows[row]
            if penalised:
                scores = penalise(scores, self._seen[sequence], sampling.repetition_penalty)
            if greedy:
                picked[row] = scores.argmax()
            else:
                picked[row] = _draw(*candidates(scores, sampling), self._random[sequence].random())
            if penalised:
                self._seen[sequence] = np.union1d(self._seen[sequence], picked[row])
        return picked


def penalise(scores: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    """`scores` float32 [vocab] with the repetition penalty for the tokens `seen` (int64, unique)."""
    scores = scores.copy()
    found = scores[seen]
    scores[seen] = np.where(found < 0, found * penalty, found / penalty)
    return scores


def candidates(scores: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """(ids ascending, weights): the tokens that can be drawn, and weights proportional to their probabilities.

    `scores`: float32 [vocab]; `sampling.temperature` is at least GREEDY_BELOW.
    """
    scores = scores / np.float32(sampling.temperature)
    ids = np.arange(len(scores))
    if 0 < sampling.top_k < len(scores):
        # Ties with the last one are kept, as in transformers.
        ids = np.flatnonzero(scores >= np.partition(scores, -sampling.top_k)[-sampling.top_k])
    weights = np.exp(scores[ids] - scores.max())
    if sampling.top_p < 1:
        weights /= weights.sum()
        kept = _nucleus(weights, sampling.top_p)
        ids, weights = ids[kept], weights[kept]
    if sampling.min_p > 0:
        likely = weights >= np.float32(sampling.min_p) * weights.max()
        ids, weights = ids[likely], weights[likely]
    return ids, weights


def _nucleus(probabilities: np.ndarray, top_p: float) -> np.ndarray:
    """Indices, ascending, of the smallest set of probabilities with the sum top_p."""
    # All below this floor sum to less than 1 - top_p: they are dropped without sorting.
    floor = min((1 - top_p) / len(probabilities), probabilities.max())
    likely = np.flatnonzero(probabilities >= floor)
    falling = likely[np.argsort(-probabilities[likely], kind="stable")]
    before = np.cumsum(probabilities[falling], dtype=np.float64) - probabilities[falling]
    return np.sort(falling[before < top_p])


def _draw(ids: np.ndarray, weights: np.ndarray, uniform: float) -> int:
    """One of `ids`, drawn with a uniform number from [0, 1)."""
    sums = np.cumsum(weights, dtype=np.float64)
    return int(ids[np.searchsorted(sums, uniform * sums[-1], side="right")])
