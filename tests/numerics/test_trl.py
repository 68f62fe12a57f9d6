"""Preference losses and their gradients, compared with TRL's trainers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import paddle
import pytest

torch = pytest.importorskip("torch")

from erniekit.config.choices import PER_TOKEN, REFERENCE_FREE, DpoLoss
from erniekit.objectives.device_batch import answer_tokens
from erniekit.objectives.dpo import DpoObjective, branch_logps
from erniekit.objectives.preference import (
    PairLogps,
    PreferenceSettings,
    preference_loss,
)
from tests.closeness import FLOAT32, FLOAT64, assert_close
from tests.unit.objectives.pairs import make_answers, pair_row
from tests.unit.objectives.rows import make_model

# Ours, whether lengths are normalised, and what DPOTrainer calls it. Its "sigmoid" has no label smoothing any more;
# "aot" has, and is the same loss where pairs come one at a time (it sorts the log-ratios of a batch).
DPO_TRAINER: list[tuple[DpoLoss, bool, str]] = [
    ("sigmoid", False, "sigmoid"),
    ("sigmoid", False, "aot"),
    ("sigmoid", True, "sigmoid_norm"),
    ("robust", False, "robust"),
    ("hinge", False, "hinge"),
    ("ipo", False, "ipo"),
    ("apo_zero", False, "apo_zero"),
    ("apo_down", False, "apo_down"),
]
SMOOTHED = ("aot", "robust")
# TRL has no loss named kto_pair any more: it is put together from two calls of KTOTrainer.
OTHER_TRAINERS = {"simpo", "orpo", "kto_pair"}
NOT_IN_TRL = {"dpop"}

BETAS = (0.05, 0.5, 2.0)
SMOOTHINGS = (0.0, 0.1, 0.4)
DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])


@pytest.fixture(autouse=True, scope="module")
def needs_trl() -> None:
    """Its import takes longer than all of these tests; processes that do not run them are spared it."""
    pytest.importorskip("trl")


def _draw() -> tuple[np.ndarray, np.ndarray]:
    """Sums [4, D] (chosen, rejected, and the reference's) and numbers of tokens [2, D] of random and extreme pairs."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 30, (2, 20))
    policy = -rng.gamma(1.0, 1.0, (2, 20)) * tokens
    reference = np.minimum(policy + rng.normal(0, 4, (2, 20)), -1e-3)
    extreme = [
        [-1, -1, -201, -1],
        [-201, -1, -1, -1],
        [-1, -201, -1, -1],
        [-1, -1, -1, -201],
        [-1, -201, -201, -1],
        [-201, -1, -1, -201],
        [-7, -9, -7, -9],
    ]
    sums = np.concatenate([np.concatenate([policy, reference]), np.array(extreme).T], 1)
    return sums, np.concatenate([tokens, np.ones((2, len(extreme)), int)], 1)


SUMS, TOKENS = _draw()
PAIRS = SUMS.shape[1]


def _ours(
    settings: PreferenceSettings, sums: np.ndarray, tokens: np.ndarray, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """Losses [D], and gradients [2, D] of their sum with respect to the policy's two."""
    values = [paddle.to_tensor(row.astype(dtype)) for row in sums]
    for value in values[:2]:
        value.stop_gradient = False
    pairs = PairLogps(*values[: 2 if settings.loss in REFERENCE_FREE else 4])
    if settings.length_normalize or settings.loss in PER_TOKEN:
        pairs = pairs.per_token(*(paddle.to_tensor(row.astype(dtype)) for row in tokens))
    losses = preference_loss(pairs, settings)
    losses.sum().backward()
    return losses.numpy(), np.stack([value.grad.numpy() for value in values[:2]])


def _trl(
    losses_of: Callable[[Any, slice], Any], sums: np.ndarray, dtype: str, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same of TRL: `losses_of` gives the losses of the policy's [2, size] and where they are in [2, D]."""
    policy = torch.tensor(sums[:2].astype(dtype), requires_grad=True)
    parts = [slice(start, start + size) for start in range(0, sums.shape[1], size)]
    losses = torch.cat([losses_of(policy[:, at], at).reshape(-1) for at in parts])
    losses.sum().backward()
    return losses.detach().numpy(), policy.grad.numpy()


def _trainer(beta: float, **attributes: Any) -> Any:
    """What TRL's methods ask of self."""
    accelerator = SimpleNamespace(
        device="cpu", gather=lambda value: value, gather_for_metrics=lambda value: value
    )
    return SimpleNamespace(
        accelerator=accelerator,
        model=SimpleNamespace(training=True),
        beta=beta,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **attributes,
    )


def _forward(logps: Any, tokens: np.ndarray) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A model whose answers [N] have those log-probabilities, on their first token, after a prompt of one token."""
    places = torch.arange(int(tokens.max()) + 1)
    mask = ((places > 0) & (places <= torch.tensor(tokens)[:, None])).long()
    rest = torch.zeros(len(logps), len(places) - 2, dtype=logps.dtype)
    log_probs = torch.cat([logps[:, None], rest], 1)
    nothing = torch.zeros_like(log_probs).detach()
    output = SimpleNamespace(
        log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
    )
    inputs = {"input_ids": mask, "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    return lambda **_: output, inputs


def _dpo_trainer(
    policy: Any, reference: np.ndarray, tokens: np.ndarray, weights: dict[str, float], **settings: float
) -> Any:
    """DPOTrainer's loss of a batch [2, D]: the weighted sum of losses by TRL's names, each a mean over pairs."""
    from trl.trainer.dpo_trainer import DPOTrainer

    trainer = _trainer(
        **settings,
        loss_types=list(weights),
        loss_weights=list(weights.values()),
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        use_weighting=False,
    )
    model, inputs = _forward(policy.reshape(-1), tokens.reshape(-1))
    chosen, rejected = torch.tensor(reference, dtype=policy.dtype)
    inputs |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    return DPOTrainer._compute_loss(trainer, model, inputs, False)


def _dpo_trainer_of_part(policy: Any, at: slice, **arguments: Any) -> Any:
    return _dpo_trainer(policy, SUMS[2:, at], TOKENS[:, at], **arguments)


def _kto_trainer(policy: Any, reference: Any, divergent: Any, label: bool, beta: float) -> Any:
    """KTOTrainer's mean loss of answers [D] of one label; `divergent` (policy, reference) estimate the divergence."""
    from trl.trainer.kto_trainer import KTOTrainer

    trainer = _trainer(
        beta,
        loss_type="kto",
        calculate_KL=True,
        desirable_weight=1.0,
        undesirable_weight=1.0,
        _compute_kl_logps=lambda model, batch: divergent[0],
    )
    model, inputs = _forward(policy, np.ones(len(policy), int))
    inputs |= {
        "label": torch.full((len(policy),), label),
        "ref_logps": reference,
        "ref_KL_logps": divergent[1],
    }
    return KTOTrainer._compute_loss(trainer, model, inputs, False)


def _assert_same(ours: tuple[np.ndarray, ...], theirs: tuple[np.ndarray, ...], dtype: str) -> None:
    for one, other, what in zip(ours, theirs, ("losses", "gradients"), strict=True):
        assert str(one.dtype) == str(other.dtype) == dtype
        assert np.isfinite(one).all()
        assert_close(one, other, FLOAT64 if dtype == "float64" else FLOAT32, what=what)
        if dtype == "float64":
            # Every pair by itself, so that the largest hide nothing; below 1e-14 is rounding, of 1 + e^-x.
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-14, err_msg=what)


def test_every_loss_is_compared_or_not_in_trl() -> None:
    compared = {name for name, _, _ in DPO_TRAINER} | OTHER_TRAINERS
    assert not compared & NOT_IN_TRL
    assert compared | NOT_IN_TRL == set(get_args(DpoLoss))


@DTYPES
@pytest.mark.parametrize(("name", "normalize", "theirs"), DPO_TRAINER)
@pytest.mark.parametrize("beta", BETAS)
def test_dpo_trainer(beta: float, name: DpoLoss, normalize: bool, theirs: str, dtype: str) -> None:
    for smoothing in SMOOTHINGS if theirs in SMOOTHED else (0.0,):
        settings = PreferenceSettings(name, beta, smoothing, length_normalize=normalize)
        loss = partial(_dpo_trainer_of_part, weights={theirs: 1.0}, beta=beta, label_smoothing=smoothing)
        _assert_same(_ours(settings, SUMS, TOKENS, dtype), _trl(loss, SUMS, dtype, 1), dtype)


@DTYPES
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("beta", BETAS)
def test_simpo(beta: float, smoothing: float, dtype: str) -> None:
    from trl.experimental.cpo import CPOTrainer

    trainer = _trainer(beta, loss_type="simpo", simpo_gamma=0.7, label_smoothing=smoothing, alpha=0.0)

    def losses(policy: Any, at: slice) -> Any:
        return CPOTrainer.cpo_loss(trainer, *(policy / torch.tensor(TOKENS[:, at])))[0]

    settings = PreferenceSettings("simpo", beta, smoothing, simpo_gamma=0.7)
    _assert_same(_ours(settings, SUMS, TOKENS, dtype), _trl(losses, SUMS, dtype, PAIRS), dtype)


@DTYPES
@pytest.mark.parametrize("beta", BETAS)
def test_orpo(beta: float, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.experimental.orpo import ORPOTrainer

    if dtype == "float64":  # TRL casts to float32 here.
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)

    def losses(policy: Any, at: slice) -> Any:
        # TRL's term has the opposite sign and is subtracted. It adds the likelihood of the chosen conversation with
        # its prompt; sft_weight is of the answer alone.
        return -ORPOTrainer.odds_ratio_loss(_trainer(beta), *(policy / torch.tensor(TOKENS[:, at])))[0]

    ours = _ours(PreferenceSettings("orpo", beta), SUMS, TOKENS, dtype)
    _assert_same(ours, _trl(losses, SUMS, dtype, PAIRS), dtype)


@DTYPES
@pytest.mark.parametrize("rows", [[[place] for place in range(PAIRS)], [range(5), range(5, 20)]])
@pytest.mark.parametrize("beta", BETAS)
def test_kto_pair(beta: float, rows: list[Any], dtype: str) -> None:
    """Half of KTO's losses of chosen and of rejected answers, each with the divergence that the others show."""

    def losses(policy: Any, frozen: Any) -> Any:
        chosen, rejected = zip(policy, frozen, strict=True)
        desirable = _kto_trainer(*chosen, rejected, label=True, beta=beta)
        return (desirable + _kto_trainer(*rejected, chosen, label=False, beta=beta)) / 2

    for at in rows:
        sums = SUMS[:, at]
        frozen = torch.tensor(sums[2:].astype(dtype))
        ours, gradients = _ours(PreferenceSettings("kto_pair", beta), sums, TOKENS[:, at], dtype)
        theirs = _trl(lambda policy, _, frozen=frozen: losses(policy, frozen), sums, dtype, len(ours))
        _assert_same((ours.mean(keepdims=True), gradients / len(ours)), theirs, dtype)


@pytest.mark.parametrize(
    ("name", "normalize", "theirs"),
    [("sigmoid", False, "sigmoid"), ("sigmoid", True, "sigmoid_norm"), ("ipo", False, "ipo")],
)
def test_objective_with_sft_weight(name: DpoLoss, normalize: bool, theirs: str) -> None:
    """The mean over pairs, the lengths of answers and the mean over tokens of `sft_weight`, from a model's row."""
    model, row = make_model(), pair_row(make_answers(5, seed=4, images=True), share=True)
    logps = branch_logps(model, row, 16)[0].numpy()
    frozen = (logps * 1.2 - 0.5).astype(np.float32)
    settings = PreferenceSettings(name, 0.3, length_normalize=normalize)
    objective = DpoObjective(model, settings, lambda batch: paddle.to_tensor(frozen), 16, sft_weight=0.25)
    policy, reference, tokens = (
        x.astype(np.float64).reshape(-1, 2).T for x in (logps, frozen, answer_tokens(row))
    )
    expected = _dpo_trainer(
        torch.tensor(policy), reference, tokens, {theirs: 1.0, "sft": 0.25}, beta=0.3, label_smoothing=0.0
    )
    assert_close(objective(row).total, float(expected))
