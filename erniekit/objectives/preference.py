"""Preference losses: pure functions of the log-probabilities of chosen and rejected answers.

In the formulas c and r are the log-probabilities of the chosen and the rejected answer under the policy, C and R under
the reference model; a = c - C and b = r - R are the log-ratios, h = a - b, and s(x) is the logistic function. A bar
means divided by the number of tokens of the answer. All but DPOP agree with TRL 1.16 (tests/numerics/test_trl.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from erniekit.config.choices import DpoLoss
from erniekit.config.schema import DpoConfig

_SIMPO_BETA, _BETA = 2.0, 0.1
# The largest mean log-probability with finite odds in float32.
_CERTAIN = -1e-7


@dataclass(frozen=True)
class PreferenceSettings:
    """The loss and its constants.

    label_smoothing: assumed share of pairs with flipped labels. length_normalize: use log-probabilities per token
    instead of sums (Lambert et al. 2024, https://arxiv.org/abs/2411.15124, section 5.1.2), as PER_TOKEN losses always
    do.
    """

    loss: DpoLoss = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    simpo_gamma: float = 0.5
    dpop_lambda: float = 50.0
    length_normalize: bool = False


def preference_settings(dpo: DpoConfig) -> PreferenceSettings:
    """The loss and its constants, with the defaults that depend on the loss."""
    beta = dpo.beta if dpo.beta is not None else _SIMPO_BETA if dpo.loss == "simpo" else _BETA
    return PreferenceSettings(
        dpo.loss, beta, dpo.label_smoothing, dpo.simpo_gamma, dpo.dpop_lambda, dpo.length_normalize
    )


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of both answers of D pairs, float32 [D] each: sums over tokens, or means.

    Reference values are None for a loss without a reference model.
    """

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor | None = None
    reference_rejected: Tensor | None = None

    def per_token(self, chosen_tokens: Tensor, rejected_tokens: Tensor) -> PairLogps:
        """Divided by the numbers of tokens, float32 [D]."""
        return PairLogps(
            self.chosen / chosen_tokens,
            self.rejected / rejected_tokens,
            None if self.reference_chosen is None else self.reference_chosen / chosen_tokens,
            None if self.reference_rejected is None else self.reference_rejected / rejected_tokens,
        )

    @property
    def ratios(self) -> tuple[Tensor, Tensor]:
        """a and b; without a reference model c and r."""
        if self.reference_chosen is None or self.reference_rejected is None:
            return self.chosen, self.rejected
        return self.chosen - self.reference_chosen, self.rejected - self.reference_rejected


def preference_loss(pairs: PairLogps, settings: PreferenceSettings) -> Tensor:
    """The loss of each pair, float32 [D]. `settings` says whether `pairs` are sums or means."""
    return _LOSSES[settings.loss](pairs, settings)


def _sigmoid(pairs: PairLogps, settings: PreferenceSettings) -> Tensor:
    """-(1 - e) log s(beta h) - e log s(-beta h).

    DPO (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, eq. 7), with label smoothing e as in conservative DPO
    (Mitchell 2023, https://ericmitchell.ai/cdpo.pdf).
    """
    return _smoothed(settings.beta * _advantage(pairs), settings.label_smoothing)


def _robust(pairs: PairLogps, settings: PreferenceSettings) -> Tensor:
    """(-(1 - e) log s(beta h) + e log s(-beta h)) / (1 - 2 e).

    Robust DPO (Chowdhury et al. 2024, https://arxiv.org/abs/2403.00409, eq. 12): unbiased if a share e < 1/2 of the
    labels is flipped.
    """
    h, e = settings.beta * _advantage(pairs), settings.label_smoothing
    return (e * F.log_sigmoid(-h) - (1 - e) * F.log_sigmoid(h)) / (1 - 2 * e)


def _hinge(pairs: PairLogps, settings: PreferenceSettings) -> Tensor:
    """max(0, 1 - beta h).

    RSO with the hinge of SLiC (Liu et al. 2023, https://arxiv.org/abs/2309.06657, eq. 11).
    """
    return F.relu(1 - settings.beta * _advantage(pairs))


def _ipo(pairs: PairLogps, settings: PreferenceSettings) -> Tensor:
    """(bar h - 1 / (2 beta))^2.

    IPO (Azar et al. 2023, https://arxiv.org/abs/2310.12036, eq. 17), over means per token, as its authors did
    (https://github.com/huggingface/trl, DPOTrainer, on loss_type "ipo").
    """
    return (_advantage(pairs) - 1 / (2 * settings.beta)).square()


def _simpo(pairs: PairLogps, settings: PreferenceSettings) -> Tensor:
    """-log s(beta (bar c - bar r) - gamma), with label smoothing as in `_sigmoid`.

    SimPO (Meng et al. 2024, https://arxiv.org/abs/2405.14734, eq. 6).
    """
    margin = settings.beta * (pairs.chosen - pairs.rejected) - settings.simpo_gamma
    return _smoothed(margin, settings.label_smoothing)


def _orpo(pairs: PairLogps, settings: PreferenceSettings) -> Tensor:
    """-beta log s(log odds(bar c) - log odds(bar r)), odds(x) = e^x / (1 - e^x).

    The odds-ratio term of ORPO (Hong et al. 2024, https://arxiv.org/abs/2403.07691, eq. 7), with beta its lambda; the
    other term of eq. 6 is `sft_weight` 1.
    """
    return -settings.beta * F.log_sigmoid(_log_odds(pairs.chosen) - _log_odds(pairs.rejected))


def _dpop(pairs: PairLogps, settings: PreferenceSettings) -> Tensor:
    """-log s(beta (h - lambda max(0, C - c))).

    DPO-Positive (Pal et al. 2024, https://arxiv.org/abs/2402.13228, eq. 3). ERNIEKit adds the penalty outside the
    sigmoid.
    """
    a, b = pairs.ratios
    return -F.log_sigmoid(settings.beta * (a - b - settings.dpop_lambda * F.relu(-a)))


def _kto_pair(pairs: PairLogps, settings: PreferenceSettings) -> Tensor:
    """Half of (1 - s(beta (a - K_r))) + (1 - s(beta (K_c - b))), K_c = max(0, mean a), K_r = max(0, mean b).

    KTO (Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, eq. 8) on pairs. K estimates the KL divergence,
    without gradient, from the pairs of one row, so this loss depends slightly on packing.
    """
    a, b = pairs.ratios
    divergence_chosen, divergence_rejected = (F.relu(x.detach().mean()) for x in (a, b))
    chosen = F.sigmoid(settings.beta * (a - divergence_rejected))
    rejected = F.sigmoid(settings.beta * (divergence_chosen - b))
    return 1 - (chosen + rejected) / 2


def _apo_zero(pairs: PairLogps, settings: PreferenceSettings) -> Tensor:
    """(1 - s(beta a)) + s(beta b).

    APO-zero (D'Oosterlinck et al. 2024, https://arxiv.org/abs/2408.06266, eq. 7): raises the likelihood of chosen
    answers and lowers that of rejected ones. For chosen answers that are better than the model's.
    """
    a, b = pairs.ratios
    return 1 - F.sigmoid(settings.beta * a) + F.sigmoid(settings.beta * b)


def _apo_down(pairs: PairLogps, settings: PreferenceSettings) -> Tensor:
    """s(beta a) + (1 - s(beta h)).

    APO-down (the same paper, eq. 8): lowers the likelihood of both, more for rejected answers. For models that are
    better than the chosen answers.
    """
    a, b = pairs.ratios
    return F.sigmoid(settings.beta * a) + 1 - F.sigmoid(settings.beta * (a - b))


_LOSSES: Mapping[str, Callable[[PairLogps, PreferenceSettings], Tensor]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "robust": _robust,
    "simpo": _simpo,
    "orpo": _orpo,
    "dpop": _dpop,
    "kto_pair": _kto_pair,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
}


def _advantage(pairs: PairLogps) -> Tensor:
    a, b = pairs.ratios
    return a - b


def _smoothed(margin: Tensor, smoothing: float) -> Tensor:
    return -(1 - smoothing) * F.log_sigmoid(margin) - smoothing * F.log_sigmoid(-margin)


def _log_odds(logp: Tensor) -> Tensor:
    logp = paddle.clip(logp, max=_CERTAIN)
    return logp - paddle.log(-paddle.expm1(logp))
