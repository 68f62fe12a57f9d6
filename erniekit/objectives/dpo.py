"""Preference training (DPO and its family) over a packed row of pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import paddle
from paddle import Tensor

from erniekit.config.choices import PER_TOKEN
from erniekit.data.load.batch import PackedBatch
from erniekit.kernels.cross_entropy import chunked_log_probs
from erniekit.models.branches import BranchAttention
from erniekit.models.decoder import DecoderOutput
from erniekit.models.ernie import ErnieModel
from erniekit.moe.router import NO_ROUTER_LOSSES, RouterLossFlags
from erniekit.objectives.device_batch import DeviceBatch, answer_tokens, upload_batch
from erniekit.objectives.pairs import METRIC_DIVISORS, RowPairs
from erniekit.objectives.preference import PairLogps, PreferenceSettings, preference_loss
from erniekit.objectives.routing import NO_ROUTER_WEIGHTS, RouterWeights, RowRouting, add_router_losses
from erniekit.objectives.totals import StepTotals, count_pairs
from erniekit.upload import Upload

# A row of D pairs -> float32 [2 D] log-probabilities of chosen and rejected answers in turn, without graph.
Reference = Callable[[DeviceBatch], Tensor]


@dataclass(frozen=True)
class DpoOutput:
    """The result for one row of pairs.

    `total`: scalar with graph, the contribution of the row to the loss of the step, with router losses; `loss_sum`:
    float32 scalar, this contribution without router losses, times the pairs of the step; `routing`: None without
    experts or without totals. With context parallelism `loss_sum` and `pairs` are zero on all processes but one.
    """

    total: Tensor
    loss_sum: Tensor
    num_loss_tokens: int
    routing: RowRouting | None
    pairs: RowPairs


def upload_pairs(model: ErnieModel, batch: PackedBatch, upload: Upload = paddle.to_tensor) -> DeviceBatch:
    """Copy a row of pairs to the device, for models of the same architecture and parallel degrees as `model`."""
    attend = BranchAttention(batch.cu_seqlens, batch.branches, model.config.num_attention_heads, upload)
    return upload_batch(model, batch, attend, upload)


def branch_logps(
    model: ErnieModel,
    batch: PackedBatch | DeviceBatch,
    chunk_tokens: int,
    loss_flags: RouterLossFlags = NO_ROUTER_LOSSES,
) -> tuple[Tensor, DecoderOutput]:
    """Log-probabilities of the answers of a row, float32 [2 D] (chosen, rejected, chosen, ...), and the model's output.

    A log-probability is summed over the labelled positions of its branch. With context parallelism the sum covers all
    processes, and the output the span of this process.
    """
    if isinstance(batch, PackedBatch):
        batch = upload_pairs(model, batch)
    output = model(batch.row, loss_flags=loss_flags)
    hidden = paddle.index_select(output.hidden, batch.positions)
    logps = chunked_log_probs(hidden, model.output_weight, batch.labels, chunk_tokens)
    tokens = answer_tokens(batch.batch, *model.sharding.span(len(batch.batch.labels)))
    if not len(tokens):
        return logps, output  # no pair, no label: empty, with the graph that a filler needs
    sums = paddle.stack([part.sum() for part in paddle.split(logps, tokens.tolist())])
    return model.sharding.total(sums), output


class DpoObjective:
    """The preference loss of a packed row of pairs.

    The loss of a step is the mean over its pairs plus `sft_weight` times the mean negative log-likelihood of the tokens
    of chosen answers, so it does not depend on packing. `reference` is None for a loss without a reference model. It
    runs before the policy, without router losses, dropout or gradients.
    """

    def __init__(
        self,
        model: ErnieModel,
        settings: PreferenceSettings,
        reference: Reference | None,
        chunk_tokens: int = 1024,
        *,
        sft_weight: float = 0.0,
        router_weights: RouterWeights = NO_ROUTER_WEIGHTS,
    ) -> None:
        self.model = model
        self.settings = settings
        self.reference = reference
        self.chunk_tokens = chunk_tokens
        self.sft_weight = sft_weight
        self.router_weights = router_weights

    def upload(self, batch: PackedBatch, upload: Upload = paddle.to_tensor) -> DeviceBatch:
        """Copy a row to the device, for policy and reference."""
        return upload_pairs(self.model, batch, upload)

    def __call__(self, batch: PackedBatch | DeviceBatch, totals: StepTotals | None = None) -> DpoOutput:
        """Compute the loss of a row.

        totals: of the row's step; None in evaluation, where the row counts as a step, without router losses.
        """
        if isinstance(batch, PackedBatch):
            batch = self.upload(batch)
        loss_flags = NO_ROUTER_LOSSES if totals is None else self.router_weights.loss_flags
        reference = self.reference(batch) if self.reference is not None else None
        logps, output = branch_logps(self.model, batch, self.chunk_tokens, loss_flags)
        num_tokens = int(answer_tokens(batch.batch).sum())
        pairs, chosen_tokens = count_pairs([batch.batch]).tolist()
        step_pairs, step_chosen = pairs, chosen_tokens
        if totals is not None:
            step_pairs, step_chosen = totals.pairs, totals.chosen_tokens
        if pairs:
            sums = _pair_logps(logps, reference)
            inputs = self._loss_inputs(sums, batch.answer_tokens)
            losses = preference_loss(inputs, self.settings)
            total = losses.sum() / step_pairs
            if self.sft_weight:
                total = total - self.sft_weight * sums.chosen.sum() / step_chosen
            metrics = self._metric_sums(losses, inputs, sums)
        else:
            total = logps.sum()
            metrics = {name: paddle.zeros([], "float32") for name in self._metric_names}
        counted = self.model.sharding.counts
        loss_sum = total.detach() * step_pairs * float(counted)
        routing = None
        if totals is not None:
            total, routing = add_router_losses(total, self.model, output.routers, self.router_weights, totals)
        counts = {"pairs": pairs, "chosen_tokens": chosen_tokens, "answer_tokens": num_tokens}
        row = RowPairs(metrics, counts)
        return DpoOutput(total, loss_sum, num_tokens, routing, row if counted else row.zeros())

    def _loss_inputs(self, sums: PairLogps, tokens: Tensor) -> PairLogps:
        """The log-probabilities that the loss takes: sums over tokens, or means. tokens: float32 [D, 2]."""
        if not (self.settings.length_normalize or self.settings.loss in PER_TOKEN):
            return sums
        return sums.per_token(tokens[:, 0], tokens[:, 1])

    @property
    def _metric_names(self) -> list[str]:
        return [name for name in METRIC_DIVISORS if self.reference is not None or name != "logps/kl"]

    @paddle.no_grad()
    def _metric_sums(self, losses: Tensor, inputs: PairLogps, sums: PairLogps) -> dict[str, Tensor]:
        """Sums over the pairs of a row, by the names of METRIC_DIVISORS. inputs, sums: see `_loss_inputs`."""
        chosen, rejected = (self.settings.beta * ratio for ratio in inputs.ratios)
        values = {
            "loss/preference": losses,
            "loss/sft": -sums.chosen,
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margin": chosen - rejected,
            "rewards/accuracy": (chosen > rejected).astype("float32"),
            "logps/chosen": sums.chosen,
            "logps/rejected": sums.rejected,
            "logps/kl": sum(sums.ratios),
        }
        return {name: values[name].sum() for name in self._metric_names}


def _pair_logps(logps: Tensor, reference: Tensor | None) -> PairLogps:
    """Split the log-probabilities of policy and reference model, float32 [2 D] (chosen, rejected, chosen, ...)."""
    policy = logps.reshape([-1, 2])
    if reference is None:
        return PairLogps(policy[:, 0], policy[:, 1])
    reference = reference.reshape([-1, 2])
    return PairLogps(policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1])
