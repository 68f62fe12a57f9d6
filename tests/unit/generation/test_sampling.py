from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle
import pytest

from erniekit.errors import ConfigError
from erniekit.generation.sampling import Sampler, Sampling, candidates, penalise
from tests.closeness import assert_close

pytestmark = pytest.mark.slow

SETTINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.6, seed=3),
    Sampling(temperature=1.5, top_k=5),
    Sampling(temperature=1.0, top_p=0.7),
    Sampling(temperature=0.8, top_k=12, top_p=0.9, repetition_penalty=1.3),
    Sampling(temperature=1.2, top_p=0.95, repetition_penalty=0.7, seed=11),
    Sampling(temperature=1.0, min_p=0.2),
    Sampling(temperature=1.3, top_k=15, top_p=0.95, min_p=0.05),
]


def _logits(vocabulary: int, seed: int, scale: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, vocabulary).astype(np.float32)


def _pick(logits: np.ndarray, sampling: Sampling, indices: Sequence[int], prompt: np.ndarray) -> np.ndarray:
    """The first token of as many sequences as there are indices, all with the same logits and prompt."""
    sampler = Sampler(sampling, [prompt] * len(indices), indices)
    return sampler.pick(paddle.to_tensor(np.tile(logits, (len(indices), 1))), np.arange(len(indices)))


def _oracle(logits: np.ndarray, sampling: Sampling, prompt: np.ndarray) -> np.ndarray:
    """Probability of each token, the plain way in float64."""
    scores = logits.astype(np.float64)
    for token in set(prompt.tolist()):
        penalty = sampling.repetition_penalty
        scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
    scores /= sampling.temperature
    order = sorted(range(len(scores)), key=lambda token: -scores[token])
    kept = order[: sampling.top_k or len(order)]
    total = sum(np.exp(scores[token]) for token in kept)
    probabilities, reached = np.zeros(len(scores)), 0.0
    for token in kept:
        if reached < sampling.top_p:
            probabilities[token] = np.exp(scores[token]) / total
        reached += np.exp(scores[token]) / total
    probabilities[probabilities < sampling.min_p * probabilities.max()] = 0.0
    return probabilities / probabilities.sum()


@pytest.mark.parametrize("sampling", SETTINGS)
def test_tokens_come_as_often_as_they_should(sampling: Sampling) -> None:
    logits, prompt, draws = _logits(24, 1), np.array([3, 3, 7, 20]), 6000
    expected = _oracle(logits, sampling, prompt)
    counts = np.bincount(_pick(logits, sampling, range(draws), prompt), minlength=24)
    assert not counts[expected == 0].any()
    kept = expected > 0
    # Mean of chi-square is the degrees of freedom, its variance twice that: 4 deviations above is far out.
    chi_square = ((counts[kept] - draws * expected[kept]) ** 2 / (draws * expected[kept])).sum()
    freedom = kept.sum() - 1
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("sampling", SETTINGS)
@pytest.mark.parametrize("scale", [0.3, 2.0, 8.0])
def test_filters_are_those_of_transformers(sampling: Sampling, scale: float) -> None:
    torch = pytest.importorskip("torch")
    from transformers import generation

    logits, prompt = _logits(5000, 5, scale), np.random.default_rng(2).integers(0, 5000, 300)
    processors = [generation.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)]
    processors.append(generation.TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(generation.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(generation.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(generation.MinPLogitsWarper(sampling.min_p))
    theirs = torch.from_numpy(logits)[None]
    for processor in processors:
        theirs = processor(torch.from_numpy(prompt)[None], theirs)
    expected = torch.softmax(theirs[0], -1).numpy()
    ids, weights = candidates(penalise(logits, np.unique(prompt), sampling.repetition_penalty), sampling)
    np.testing.assert_array_equal(ids, np.flatnonzero(expected))
    assert_close(weights / weights.sum(), expected[ids])


def test_a_peaked_distribution_of_a_large_vocabulary_is_cut_right() -> None:
    logits, sampling = _logits(103_424, 4, 6.0), Sampling(temperature=0.8, top_p=0.8)
    ids, weights = candidates(logits, sampling)
    expected = _oracle(logits, sampling, np.zeros(0, np.int64))
    np.testing.assert_array_equal(ids, np.flatnonzero(expected))
    assert_close(weights / weights.sum(), expected[ids])


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.999999])
def test_at_least_one_token_stays_even_of_equal_ones(top_p: float) -> None:
    ids, _ = candidates(np.zeros(7, np.float32), Sampling(temperature=1.0, top_p=top_p))
    assert len(ids) == {1e-9: 1, 0.3: 3, 0.999999: 7}[top_p]


def test_equal_logits_at_the_end_of_top_k_all_stay() -> None:
    logits = np.array([1, 3, 1, 2, 0], np.float32)
    assert candidates(logits, Sampling(temperature=1.0, top_k=3))[0].tolist() == [0, 1, 2, 3]
    assert len(candidates(logits, Sampling(temperature=1.0, top_k=50))[0]) == 5


def test_the_most_probable_one_is_greedy() -> None:
    logits = paddle.to_tensor(np.stack([_logits(500, seed) for seed in range(20)]))
    prompts, everything = [np.arange(5)] * 20, np.arange(20)
    greedy = Sampler(Sampling(), prompts, range(20)).pick(logits, everything)
    assert greedy.tolist() == logits.numpy().argmax(-1).tolist()
    for sampling in (Sampling(temperature=1.0, top_k=1), Sampling(temperature=0.7, top_p=1e-6)):
        assert Sampler(sampling, prompts, range(20)).pick(logits, everything).tolist() == greedy.tolist()


def test_greedy_avoids_what_was_said_before() -> None:
    logits = np.array([[2.0, 1.9, -1.0, 1.8]], np.float32)
    sampler = Sampler(Sampling(repetition_penalty=2.0), [np.array([0])], [0])
    picked = [sampler.pick(paddle.to_tensor(logits), np.array([0])).item() for _ in range(4)]
    # After token 1, token 3; then all three halves stand in their old order.
    assert picked == [1, 3, 0, 0]


def test_a_draw_depends_on_the_seed_the_index_and_the_position_only() -> None:
    logits, prompt = _logits(1000, 0, 0.1), np.array([1])
    sampling = Sampling(temperature=1.0, seed=5)
    whole = _pick(logits, sampling, range(50), prompt)
    assert _pick(logits, sampling, [30, 4, 7], prompt).tolist() == whole[[30, 4, 7]].tolist()
    assert _pick(logits, Sampling(temperature=1.0, seed=6), range(50), prompt).tolist() != whole.tolist()
    assert len(set(whole.tolist())) > 40
    # A sequence that goes on while others have ended gets what it would get beside them.
    rows = paddle.to_tensor(np.tile(logits, (3, 1)))
    together, left = (Sampler(sampling, [prompt] * 3, range(3)) for _ in range(2))
    first = [sampler.pick(rows, np.arange(3)).tolist() for sampler in (together, left)]
    assert first[0] == first[1] == whole[:3].tolist()
    second = together.pick(rows, np.arange(3))
    assert second.tolist() != first[0]
    assert left.pick(rows[1:2], np.array([1])).tolist() == second[1:2].tolist()


@pytest.mark.parametrize("temperature", [1e-38, 1e-300, 9e-6])
def test_tiny_temperatures_are_greedy(temperature: float) -> None:
    logits = paddle.to_tensor(np.float32([[-2e4, 1e4, 3.0, 1e4]]))
    sampler = Sampler(Sampling(temperature=temperature, top_k=2, min_p=0.5), [np.array([0])], [0])
    assert sampler.pick(logits, np.array([0])).tolist() == [1]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", 1e5),
        ("repetition_penalty", 1e-38),
        ("repetition_penalty", 1e38),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("repetition_penalty", 0.0),
        ("stop", ("a", "")),
        ("seed", -1),
        ("min_p", -0.1),
        ("min_p", 1.1),
    ],
)
def test_what_is_out_of_range_is_refused(setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{setting} must be"):
        Sampling(**{setting: value})  # type: ignore[arg-type]
