"""Predicts the time of a step, from rates measured on one kind of GPU, scaled by data sheets for others.

`docs/performance.md` has the measurements, on the H200 with torch's tensors instead of Paddle's. Other GPUs are assumed
to reach the same share of their peak in products, of their bandwidth in memory-bound kernels, and of their links in
communication. Not measured: the host's time of Paddle, more than two GPUs, and several machines.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from erniekit.config.choices import REFERENCE_FREE
from erniekit.models.specs import is_expert_tensor
from erniekit.train.activations import ActivationPlan
from erniekit.train.flops import RowCounts, flop_rates
from erniekit.train.planner.gpus import Gpu, find_gpu
from erniekit.train.planner.job import Job

MEASURED = find_gpu("h200-141gb")
"""The GPU of all measurements."""

# TFLOP/s of the H200 in a step with recompute of all layers, 8,192 tokens of text: "where a layer's time goes".
_DENSE = 613.0
_ATTENTION = 404.0
# Grouped products of experts with many rows each, and the number of rows per expert for half of this rate.
_EXPERTS, _HALF_ROWS = 698.0, 146.0
# TB/s of a copy and of AdamW; and how often a layer moves each activation per pass (one forward, two backward).
_COPY, _ADAMW = 4.27, 3.96
_MOVES = 5.7 / 4
_ADAMW_BYTES = 28
_LOSS_SECONDS = 0.8e-12 * 4.27  # per logit and TB/s: 0.805 ms for 1,024 x 103,424, loss and sum of gradients
# The shares of a link of 450 GB/s that NCCL reached, and the share of communication that overlaps with computation.
_LINK_SHARE, _OVERLAP = 205.0 / 450.0, 0.63
_EXCHANGE_SHARE = 190.0 / 450.0
# GB/s per GPU between machines: assumes 400 Gb/s.
_NETWORK, _GPUS_OF_A_MACHINE = 50.0, 8
# Milliseconds in which the host issues a layer with recompute, without and with adapters. A faster GPU waits.
_HOST, _HOST_LORA = 7.6, 9.5


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by part, and the tokens of a step over all GPUs.

    compute: for all sequences of a process; communication: without the part that overlaps with computation.
    """

    compute: float
    optimizer: float
    communication: float
    tokens: int

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.compute + self.optimizer + self.communication

    @property
    def tokens_per_second(self) -> float:
        """Over all GPUs."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Roofline:
    """Times of a job on one kind of GPU, for full sequences of one document. images: the share of image tokens."""

    job: Job
    gpu: Gpu
    images: float = 0.0

    @cached_property
    def _tokens(self) -> int:
        return self.job.config.data.max_length

    @cached_property
    def _counts(self) -> RowCounts:
        """The sizes of a sequence."""
        vision, tokens = self.job.architecture.vision, self._tokens
        media = 0 if vision is None else round(self.images * tokens)
        patches = 0 if vision is None else media * vision.spatial_merge_size**2
        image = min(patches, 4096)  # patches of a usual image
        pairs = tokens * (tokens + 1) / 2
        return RowCounts(tokens - media, media, tokens - media, pairs, patches, patches * image, media)

    def step(self) -> StepTime:
        """The time of a step. Each process computes its rows one after the other."""
        job, dims = self.job, self.job.dims
        per_step = job.config.num_rows(dims.data)
        rows = max(1, per_step // dims.data)
        return StepTime(
            compute=rows * self.row_seconds(),
            optimizer=self._optimizer_seconds(),
            communication=self._communication_seconds(rows),
            tokens=per_step * self._tokens,
        )

    def row_seconds(self) -> float:
        """The time of one sequence, forward and backward, on the GPUs that share it."""
        job = self.job
        device = self._product_seconds() + self._moving_seconds() + self._dequantize_seconds()
        reference = self._reference_seconds()
        host = (_HOST_LORA if job.config.lora.enabled else _HOST) * 1e-3 * job.architecture.num_hidden_layers
        if job.config.train.recompute == "none":
            host *= 0.75
        return max(device, host) + reference

    def _product_seconds(self) -> float:
        """Matrix products, including recomputed ones, and attention."""
        experts, others = self._rates(trained=True)
        again_experts, again = self._rates(trained=False)
        share = self._recomputed_share
        peak = self.gpu.tflops / MEASURED.tflops * 1e12
        expert_rate = _EXPERTS * self._rows_factor() * peak
        total = 0.0
        for rates, first, scale in ((experts, again_experts, expert_rate), (others, again, _DENSE * peak)):
            counts = self._counts
            for name in ("text", "vision"):
                total += getattr(counts, name) * (getattr(rates, name) + share * getattr(first, name)) / scale
            for name in ("loss", "media"):
                total += getattr(counts, name) * getattr(rates, name) / scale
            total += counts.patches * (rates.patches + self._vision_share * first.patches) / scale
        attention = self._counts.pairs * (others.pairs + share * again.pairs)
        attention += self._counts.patch_pairs * (others.patch_pairs + self._vision_share * again.patch_pairs)
        total += attention / (_ATTENTION * peak)
        logits = self._counts.loss * self.job.architecture.vocab_size
        return (total + logits * _LOSS_SECONDS / self._bandwidth) / self.job.dims.context

    def _rates(self, *, trained: bool) -> tuple[RowCounts, RowCounts]:
        """FLOPs of experts, and of everything else, per unit of a sequence. trained: with the backward pass."""
        job = self.job
        key = f"{trained} {job.selection_key}"
        if key not in job.rates:
            selected = job.selected
            names = selected.trained if trained else []
            whole = flop_rates(job.architecture, selected.specs, names)
            experts = [spec for spec in selected.specs if is_expert_tensor(spec.name)]
            part = flop_rates(job.architecture, experts, names)
            # Attention does not belong to a tensor, so both calls count it.
            part = part._replace(pairs=0.0, patch_pairs=0.0)
            rest = RowCounts(*(a - b for a, b in zip(whole, part, strict=True)))
            job.rates[key] = part, rest
        return job.rates[key]

    def _rows_factor(self) -> float:
        """The relative speed of the experts' products for their number of rows."""
        moe = self.job.architecture.moe
        if moe is None:
            return 1.0
        # The experts of a process receive the tokens of all processes in its expert-parallel group.
        rows = self._counts.text * moe.top_k / moe.num_experts / self.job.dims.context * self.job.dims.expert
        return rows / (rows + _HALF_ROWS) if rows else 1.0

    @property
    def _recomputed_share(self) -> float:
        plan = self.job.plan.backward
        return len(plan.recomputed_layers) / self.job.architecture.num_hidden_layers

    @property
    def _vision_share(self) -> float:
        plan, vision = self.job.plan.backward, self.job.architecture.vision
        return 0.0 if vision is None else len(plan.recomputed_vision) / (vision.depth + 1)

    @property
    def _bandwidth(self) -> float:
        """TB/s of a copy."""
        return _COPY * self.gpu.bandwidth / MEASURED.bandwidth

    def _moving_seconds(self) -> float:
        """Memory-bound kernels: norms, rotation, SwiGLU, permutation and sums."""
        job = self.job
        plan = ActivationPlan(job.architecture, job.config, frozenset(), job.largest_row, 2)
        backward = job.plan.backward
        passes = 1 + self._recomputed_share + 2 * len(backward.layers) / job.architecture.num_hidden_layers
        moved = self._tokens * sum(plan.layer_sizes()) * passes
        if self._counts.media:
            depth = job.architecture.vision.depth + 1 if job.architecture.vision is not None else 1
            passes = 1 + self._vision_share + 2 * len(backward.vision) / depth
            moved += self._counts.media * 2 * sum(plan.vision_sizes()) * passes
        return _MOVES * moved / job.dims.context / (self._bandwidth * 1e12)

    def _dequantize_seconds(self) -> float:
        """Reading codes and writing weights in each pass, at the speed of a copy."""
        job = self.job
        if job.config.model.quantize == "none":
            return 0.0
        memory = job.plan.memory
        groups = job.selected.groups(job.config.model.quantize)
        moved = sum(
            group.stored_bytes + group.num_bytes for group in groups if group.stored_bytes != group.num_bytes
        )
        share = memory.weight_bytes / max(1, sum(group.stored_bytes for group in groups))
        modalities = 1 if job.architecture.moe is None else job.architecture.moe.num_modalities
        # A sequence of text does not use vision experts.
        used = 1.0 if modalities == 1 or self._counts.vision else 0.75
        return moved * share * used * (2 + self._recomputed_share) / (self._bandwidth * 1e12)

    def _reference_seconds(self) -> float:
        """The forward pass of the reference model of preference training."""
        config = self.job.config
        if config.task != "dpo" or config.dpo.loss in REFERENCE_FREE or config.dpo.reference == "cached":
            return 0.0
        passes = 3 if self.job.config.train.recompute == "none" else 4
        return (self._product_seconds() + self._moving_seconds()) / passes

    def _optimizer_seconds(self) -> float:
        """Reading and writing all state of the parameters that a process updates."""
        state = self.job.plan.memory.optimizer_bytes / 12
        return _ADAMW_BYTES * state / (_ADAMW * self.gpu.bandwidth / MEASURED.bandwidth * 1e12)

    def _communication_seconds(self, rows: int) -> float:
        """Gradients, gathered weights, and tokens for experts, without the part that overlaps with computation."""
        if self.job.dims.world == 1:
            return 0.0
        return self._state_seconds(rows) * (1 - _OVERLAP) + rows * self._exchange_seconds()

    def _state_seconds(self, rows: int) -> float:
        """Seconds of collectives over gradients and weights in a step."""
        job, dims = self.job, self.job.dims
        shard, total = job.config.parallel.shard, 0.0
        for group in job.selected.groups(job.config.model.quantize):
            holders = dims.replicas if group.is_expert else dims.world
            if holders == 1:
                continue
            ring = (holders - 1) / holders / (dims.expert if group.is_expert else 1)
            moved = 0.0
            is_gathered = shard == "parameters" and group.is_fully_sharded
            if is_gathered:
                # In the forward and in the backward pass.
                moved += 2 * rows * group.stored_bytes
            if group.is_trained:
                times = rows if shard in ("gradients", "parameters") else 1
                moved += 4 * group.size * times
                if not is_gathered:
                    # Gathered after the update, or the second half of an all-reduce.
                    moved += group.num_bytes if shard != "none" else 4 * group.size
            total += moved * ring
        return total / (_LINK_SHARE * self._link(dims.world) * 1e9)

    def _exchange_seconds(self) -> float:
        """All-to-all of tokens for experts and of attention heads for context parallelism, in each pass."""
        job, dims = self.job, self.job.dims
        architecture, total = job.architecture, 0.0
        moe, tokens = architecture.moe, self._tokens / dims.context
        passes = 2 + self._recomputed_share
        if moe is not None and dims.expert > 1:
            bytes_sent = tokens * moe.top_k * 2 * architecture.hidden_size * (dims.expert - 1) / dims.expert
            total += 2 * bytes_sent * passes * len(moe.sparse_layers) / self._link(dims.expert)
        if dims.context > 1:
            heads = architecture.num_attention_heads + architecture.num_key_value_heads
            bytes_sent = tokens * 2 * heads * architecture.head_dim * 2 * (dims.context - 1) / dims.context
            total += bytes_sent * passes * architecture.num_hidden_layers / self._link(dims.context)
        return total / (_EXCHANGE_SHARE * 1e9)

    def _link(self, processes: int) -> float:
        """GB/s between processes: of a machine's links, or of the network."""
        return self.gpu.link if processes <= _GPUS_OF_A_MACHINE else min(self.gpu.link, _NETWORK)


def step_time(job: Job, gpu: Gpu, images: float = 0.0) -> StepTime:
    """The predicted time of a step. images: the share of image tokens."""
    return Roofline(job, gpu, images).step()
