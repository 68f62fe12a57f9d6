"""The schema of a run's configuration: sections, fields, units, defaults and ranges.

Sections are frozen, reject unknown keys and convert types only without loss (`erniekit.config.section`). Rules between
fields are in `erniekit.config.rules`. The sections `model`, `lora`, `data`, `eval` and `log` are in `model.py`,
`data.py`, `evaluation.py` and `logging.py`.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from erniekit.config import choices
from erniekit.config.data import DataConfig
from erniekit.config.evaluation import EvalConfig
from erniekit.config.logging import LogConfig
from erniekit.config.model import LoraConfig, ModelConfig
from erniekit.config.section import (
    BOOLEANS,
    NotNegative,
    PathText,
    Positive,
    Section,
    Share,
    Text,
    Weight,
)


class LossConfig(Section):
    """The token loss and the router losses of mixture-of-experts models.

    Router losses are computed separately for text and vision, in every layer with a trained router. They add to the
    gradients but not to the logged loss, and are logged separately. Fine-tuning usually leaves them off.
    """

    chunk_tokens: Positive = Field(
        1024,
        description="Trained tokens per chunk of the output layer. Logits are in memory for one chunk at a time.",
    )
    normalization: choices.Normalization = Field(
        "tokens",
        description="Divisor of the loss sum. tokens: the number of trained tokens in the step; token_balanced: "
        "rows_per_step * max_length, so a token has the same weight in every step. The logged loss is the mean over "
        "trained tokens in both cases.",
    )
    balance_weight: Weight = Field(
        0.0,
        description="Weight of the load-balancing loss: experts * sum of (mean probability * share of tokens), per "
        "packed sequence. It equals top_k when all experts are used equally. 0: off.",
    )
    z_weight: Weight = Field(
        0.0, description="Weight of the z-loss: mean over tokens of logsumexp(router logits)^2. 0: off."
    )
    orthogonal_weight: Weight = Field(
        0.0,
        description="Weight of the orthogonal loss: mean squared cosine between the expert vectors of a router. 0: "
        "off.",
    )
    orthogonal_mode: choices.OrthogonalMode = Field(
        "loss",
        description="loss: the gradient passes through clipping and the optimizer's moments; decoupled: after each "
        "step, router weights move by learning rate * weight * gradient.",
    )
    bias_update_rate: Weight = Field(
        0.0,
        description="Step size with which each expert's correction bias moves towards even load after an optimizer "
        "step. Not available with LoRA, because adapters do not store the bias. 0: off.",
    )


class DpoConfig(Section):
    """Preference training. The loss is the mean over the preference pairs of a step."""

    loss: choices.DpoLoss = Field(
        "sigmoid",
        description="Loss of a preference pair. sigmoid is DPO; simpo and orpo need no reference model.",
    )
    beta: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Strength of the pull towards the reference model; larger keeps the policy closer. null: 2 for "
        "simpo, otherwise 0.1.",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="Assumed share of pairs with flipped preferences. Used by sigmoid, robust and simpo.",
    )
    simpo_gamma: Weight = Field(0.5, description="Target margin of simpo.")
    dpop_lambda: Weight = Field(
        50.0, description="Weight of the dpop penalty on chosen answers that become less likely."
    )
    sft_weight: Weight | None = Field(
        None,
        description="Weight of the mean negative log-likelihood over the tokens of chosen answers. null: 1 for "
        "orpo, which includes this term, otherwise 0.",
    )
    length_normalize: bool = Field(
        False,
        description="Use log-probabilities per token instead of sums. ipo, simpo and orpo always do.",
    )
    reference: choices.DpoReference = Field(
        "auto",
        description="Reference model. auto: with LoRA, the model with its adapters disabled, otherwise copy; copy: "
        "a second copy of the checkpoint in memory; cached: log-probabilities computed once before training and "
        "stored with the encoded data; none: no reference, for simpo and orpo.",
    )


class ParameterGroup(Section):
    """Optimizer settings for the parameters that match a pattern."""

    match: Text = Field(description="fnmatch pattern over parameter names. The first matching group applies.")
    learning_rate_ratio: float = Field(1.0, ge=0, description="Factor on the learning rate.")
    weight_decay: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Weight decay of the group. null: optimizer.weight_decay."
    )


class OptimizerConfig(Section):
    """AdamW."""

    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(
        0.1,
        ge=0,
        description="Decoupled weight decay. Norms, biases and other 1-D parameters are never decayed.",
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay rate of the first moment, per step.")
    beta2: float = Field(0.95, ge=0, lt=1, description="Decay rate of the second moment, per step.")
    epsilon: float = Field(1e-8, gt=0, description="Added to the denominator of the update.")
    max_grad_norm: float = Field(1.0, ge=0, description="Clip gradients to this global norm. 0: no clipping.")
    router_learning_rate_ratio: float = Field(
        1.0, ge=0, description="Factor on the learning rate of routers, in addition to their group's factor."
    )
    groups: list[ParameterGroup] = Field([], description="Parameter groups with different settings.")


class ScheduleConfig(Section):
    """The learning rate schedule."""

    type: choices.ScheduleType = Field(
        "cosine",
        description="Shape after warm-up. wsd: constant, then a decay by 1 - sqrt over the last decay_ratio of all "
        "steps.",
    )
    warmup_steps: NotNegative = Field(
        0, description="Steps of linear warm-up. Must not exceed the steps of the run."
    )
    warmup_ratio: Share = Field(
        0.0, description="Warm-up as a fraction of all steps. Used if warmup_steps is 0."
    )
    min_learning_rate: float = Field(0.0, ge=0, description="Learning rate at the end of the schedule.")
    decay_ratio: float = Field(
        0.1,
        gt=0,
        le=1,
        description="With wsd: fraction of all steps, at the end, in which the learning rate decays.",
    )


def as_recompute(value: Any) -> Any:
    """Converts a boolean: true is layers, false is none."""
    if isinstance(value, str):
        value = BOOLEANS.get(value.lower(), value)
    if isinstance(value, bool):
        return "layers" if value else "none"
    return value


class TrainConfig(Section):
    """Length, batch size and output of the run."""

    output_dir: PathText = Field(
        description="Directory for the checkpoints and logs of the run. Relative to the working directory."
    )
    epochs: float = Field(
        1,
        gt=0,
        le=10_000,  # the rows of each epoch are planned before the run
        description="Passes over the training data. 1.5 ends in the middle of the second pass.",
    )
    max_steps: Positive | None = Field(
        None, description="Optimizer steps. Overrides epochs. null: epochs decides."
    )
    rows_per_step: Positive | None = Field(
        None,
        description="Packed sequences per optimizer step, over all devices. Must be a multiple of the number of "
        "data-parallel ranks (devices / parallel.context). Each rank accumulates gradients over its share. null: "
        "train.tokens_per_step decides.",
    )
    tokens_per_step: Positive | None = Field(
        None,
        description="Global batch size in tokens, for any number of devices. rows_per_step becomes tokens_per_step / "
        "data.max_length, rounded down, then up to a multiple of the data-parallel ranks. A resumed run keeps its "
        "rows_per_step. Not used if rows_per_step is set. null: one packed sequence per rank.",
    )
    seed: int = Field(
        42, ge=0, lt=2**32, description="Seed of the data order, the adapter weights and dropout."
    )
    recompute: Annotated[choices.Recompute, BeforeValidator(as_recompute)] = Field(
        "none",
        description="Recompute activations in the backward pass (gradient checkpointing): less memory, more time, "
        "the same gradients up to rounding. layers: all decoder layers, vision blocks and the resampler, about a third "
        "more time; auto: only the number of layers, counted from the lowest, that the memory plan needs to fit the "
        "device. true means layers, false none.",
    )
    deterministic: bool = Field(
        False,
        description="On a GPU, use only kernels that add in a fixed order, so a repeated or resumed run is bit-exact. "
        "The backward pass of attention takes more time and memory. No effect on a CPU, where kernels are "
        "deterministic.",
    )
    on_nonfinite: choices.OnNonFinite = Field(
        "stop",
        description="What to do when a loss or gradient is NaN or infinite. stop: end the run with an error that names "
        "the samples; skip: leave weights and optimizer unchanged, count the step (train/skipped_steps) and go on with "
        "the next step of data and schedule; the 10th such step in a row ends the run. Both save the packed sequences "
        "for `erniekit replay`.",
    )
    eval_every: Positive | None = Field(
        None, description="Steps between evaluations on data.eval. null: only at the end."
    )
    profile_steps: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = Field(
        None,
        description="First and last step to record with Paddle's profiler, such as [10, 11]. The main process writes a "
        "Chrome trace to the run's directory, under profile/, and logs the heaviest kernels. null: off.",
    )
    peak_tflops: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Dense peak of one device in the compute dtype, in TFLOP/s, for MFU (train/mfu). null: known for "
        "common NVIDIA GPUs in bfloat16; for other devices MFU is not logged.",
    )


class ParallelConfig(Section):
    """Devices and parallelism."""

    device: choices.Device = Field("auto", description="auto: a GPU if there is one.")
    threads: Positive | None = Field(
        None, description="CPU threads per process. null: the available cores, divided among the processes."
    )
    expert: Positive = Field(
        1,
        description="Expert parallel degree: each process holds 1/N of the experts.",
    )
    context: Positive = Field(
        1,
        description="Context parallel degree: N processes split each packed sequence, for sequences too long for "
        "one device. Attention splits the heads instead, so N must divide the number of attention heads.",
    )
    shard: choices.Shard = Field(
        "none",
        description="ZeRO level. optimizer (ZeRO-1): shard AdamW's state over the processes that hold the same "
        "weights; gradients (ZeRO-2): also gradients; parameters (ZeRO-3): also the weights of decoder layers, trained "
        "or frozen, gathered one layer at a time; needs train.recompute. No effect on a single process.",
    )
    timeout: Annotated[float, Field(gt=0)] = Field(
        600.0,
        description="Seconds to wait for other processes before the run ends with an error that names those that are "
        "missing.",
    )


class KernelsConfig(Section):
    """Kernels of norms, rotary embeddings, SwiGLU, grouped GEMM, attention, loss and optimizer."""

    backend: choices.KernelBackend = Field(
        "auto",
        description="Form of the kernels on a GPU. auto: the fastest of each kernel; triton: Triton where a kernel has "
        "it; paddle: PaddlePaddle's own, for machines without Triton; plain: basic operators, slow, for comparison. A "
        "CPU has only auto and plain. The log names the forms in use.",
    )
    attention: choices.AttentionKernel = Field(
        "auto",
        description="Attention on a GPU in bfloat16. flashmask: one call of PaddlePaddle's FlashMask for the whole "
        "packed sequence; flash: variable-length flash attention, one call per group of documents of similar length. "
        "auto: flashmask, or plain with kernels.backend: plain.",
    )


class CheckpointConfig(Section):
    """Checkpoints of the run."""

    save_every: Positive | None = Field(
        None,
        description="Steps between checkpoints. null: only at the end, and after an interrupt or an error.",
    )
    keep: Positive = Field(
        2,
        description="Number of newest complete checkpoints to keep, in addition to the best one (eval.best_metric).",
    )
    keep_every: Positive | None = Field(
        None,
        description="Also keep every checkpoint at a multiple of this number of steps. Must be a multiple of "
        "save_every. null: off.",
    )
    background: bool = Field(
        True,
        description="Copy a checkpoint to host memory and write it while training continues. The buffer is reused for "
        "the next checkpoint. If host memory is too small for the copy, training waits, and the log says so.",
    )
    shared: bool = Field(
        True,
        description="true: all machines share the disk of train.output_dir, and every process writes its own part. "
        "false: the main process writes everything to its machine's disk; copy the checkpoint to the other machines "
        "before resuming.",
    )


class Schema(Section):
    """All sections of a run. `erniekit.config.Config` adds the rules between them."""

    task: choices.Task = Field(
        "sft", description="sft: supervised fine-tuning on answers; dpo: training on preference pairs."
    )
    model: ModelConfig
    lora: LoraConfig = LoraConfig()
    data: DataConfig
    loss: LossConfig = LossConfig()
    dpo: DpoConfig = DpoConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig
    eval: EvalConfig = EvalConfig()
    parallel: ParallelConfig = ParallelConfig()
    kernels: KernelsConfig = KernelsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
