"""The schema of a run's configuration: every section, field, unit, default and range.

The models are frozen, refuse unknown keys and convert types only where nothing is lost (`erniekit.config.section`).
Relations between fields are in `erniekit.config.rules`.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from erniekit.config import choices
from erniekit.config.data import DataConfig
from erniekit.config.evaluation import EvalConfig
from erniekit.config.section import (
    NotNegative,
    PathText,
    Positive,
    Section,
    Share,
    Text,
    TextList,
    Weight,
    as_list,
)


class ModelConfig(Section):
    """The checkpoint to start from."""

    path: PathText = Field(
        description="Local directory of the checkpoint in Hub layout. Relative to the working directory."
    )
    dtype: choices.Dtype = Field(
        "auto", description="Compute dtype. auto: bfloat16 on a GPU, float32 on a CPU."
    )
    resize_vocab: bool = Field(
        False,
        description="Add rows to the embedding and the head for tokens that were added to the tokenizer, up to a "
        "multiple of 64. New rows start as the mean of the others. With LoRA both are trained and saved whole.",
    )
    max_position_embeddings: Positive | None = Field(
        None,
        description="Positions of the trained model, where longer documents than the checkpoint was made for are to be "
        "trained; nothing is interpolated, and config.json states the new number. null: the checkpoint's; a longer "
        "document is treated as one above data.max_length.",
    )
    freeze: TextList = Field(
        [],
        description="Parts that are not trained: vision, resampler, language, router, "
        "or fnmatch patterns over parameter names.",
    )


def _as_targets(value: Any) -> Any:
    """A text alone as a list; `all` and `all-linear`, as PEFT and others have it, as the names that they stand for."""
    listed = as_list(value)
    if not isinstance(listed, list):
        return listed
    named: list[Any] = []
    for item in listed:
        named += choices.ALL_LINEAR if item in ("all", "all-linear", "all_linear") else [item]
    return list(dict.fromkeys(named)) if all(isinstance(item, str) for item in named) else named


class LoraConfig(Section):
    """Low-rank adapters in place of training every weight."""

    enabled: bool = Field(False, description="Train adapters only; the weights of the checkpoint stay.")
    rank: Positive = Field(8, description="Rank of each adapter.")
    alpha: Annotated[float, Field(gt=0)] | None = Field(
        None, description="The adapter's output is scaled by alpha / rank. null: 2 * rank."
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Probability of dropping an element of an adapter's input."
    )
    targets: Annotated[list[Text], Field(min_length=1), BeforeValidator(_as_targets)] = Field(
        [*choices.ALL_LINEAR],
        description="Modules that get an adapter: the last part of a module's name, or an fnmatch pattern over the "
        "full name. all, or all-linear: every linear layer of the decoder layers, those of experts too, which is "
        "the default; not the vision tower, the resampler and the head.",
    )
    train_router: bool = Field(False, description="Also train the routers of the experts.")


class LossConfig(Section):
    """The token loss, and what keeps the experts of a mixture in use.

    Router losses are computed for text and vision by themselves, in every layer whose router is trained; they change
    gradients and are logged apart. The usual practice in fine-tuning is to leave them off.
    """

    chunk_tokens: Positive = Field(1024, description="Loss tokens whose logits exist at one time.")
    normalization: choices.Normalization = Field(
        "tokens",
        description="What gradients divide the sum over loss tokens by. tokens: their number in the step; "
        "token_balanced: rows_per_step * max_length, so that a token weighs the same in every step. The logged loss "
        "is the mean over loss tokens with both.",
    )
    balance_weight: Weight = Field(
        0.0,
        description="Weight of the load-balancing loss: experts * sum of (mean probability * share of tokens), which "
        "is top_k where all experts are used alike; per row. 0: off.",
    )
    z_weight: Weight = Field(
        0.0, description="Weight of the z-loss: mean over tokens of logsumexp(router logits)^2. 0: off."
    )
    orthogonal_weight: Weight = Field(
        0.0,
        description="Weight of the orthogonal loss: mean squared cosine between the rows of a router. 0: off.",
    )
    orthogonal_mode: choices.OrthogonalMode = Field(
        "loss",
        description="loss: its gradient goes through clipping and the optimizer's moments; decoupled: after each step "
        "routers move by learning rate * weight * gradient.",
    )
    bias_update_rate: Weight = Field(
        0.0,
        description="After each step an expert's correction bias moves by this much towards even use, without a "
        "loss. Not with LoRA, whose adapters do not hold it. 0: off.",
    )


class DpoConfig(Section):
    """Preference training: what makes chosen answers likelier than rejected ones.

    The loss is the mean over the pairs of a step.
    """

    loss: choices.DpoLoss = Field(
        "sigmoid", description="The loss of a pair; sigmoid is DPO. simpo and orpo have no reference model."
    )
    beta: Annotated[float, Field(gt=0)] | None = Field(
        None, description="How strongly the policy is held to the reference. null: 2 for simpo, else 0.1."
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="Share of pairs whose preference is taken to be the wrong way round; of sigmoid, robust and simpo.",
    )
    simpo_gamma: Weight = Field(0.5, description="The margin that simpo asks for.")
    dpop_lambda: Weight = Field(
        50.0, description="Weight of dpop's penalty on chosen answers that become less likely."
    )
    sft_weight: Weight | None = Field(
        None,
        description="Weight of the mean negative log-likelihood of the tokens of chosen answers. null: 1 for orpo, "
        "of which it is a part, else 0.",
    )
    length_normalize: bool = Field(
        False,
        description="Use log-probabilities per token instead of sums; ipo, simpo and orpo always do.",
    )
    reference: choices.DpoReference = Field(
        "auto",
        description="The reference model. auto: with LoRA the model without its adapters, else copy; copy: the "
        "checkpoint once more in memory; cached: its log-probabilities, computed once before training and kept with "
        "the encoded data; none: for a loss that has none.",
    )


class ParameterGroup(Section):
    """Settings of their own for the parameters whose names match."""

    match: Text = Field(
        description="fnmatch pattern over parameter names; the first group that matches wins."
    )
    learning_rate_ratio: float = Field(1.0, ge=0, description="Factor on the learning rate.")
    weight_decay: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Weight decay of the group. null: optimizer.weight_decay."
    )


class OptimizerConfig(Section):
    """AdamW."""

    learning_rate: float = Field(1e-5, gt=0, description="Learning rate at the top of the schedule.")
    weight_decay: float = Field(
        0.1, ge=0, description="Decoupled weight decay. Norms, biases and 1-D parameters never decay."
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the mean of gradients, per step.")
    beta2: float = Field(0.95, ge=0, lt=1, description="Decay of the mean of squared gradients, per step.")
    epsilon: float = Field(1e-8, gt=0, description="Added to the denominator of the update.")
    max_grad_norm: float = Field(1.0, ge=0, description="Global gradient norm to clip to. 0: no clipping.")
    router_learning_rate_ratio: float = Field(
        1.0, ge=0, description="Factor on the learning rate of routers, on top of that of their group."
    )
    groups: list[ParameterGroup] = Field([], description="Parameters with settings of their own.")


class ScheduleConfig(Section):
    """The learning rate over the run."""

    type: choices.ScheduleType = Field(
        "cosine", description="Shape after warm-up. wsd: constant, then a fall by 1 - sqrt (decay_ratio)."
    )
    warmup_steps: NotNegative = Field(
        0, description="Steps of linear warm-up; more than the run has are an error."
    )
    warmup_ratio: Share = Field(0.0, description="Warm-up as a share of all steps, where warmup_steps is 0.")
    min_learning_rate: float = Field(0.0, ge=0, description="Learning rate at the end of the schedule.")
    decay_ratio: float = Field(
        0.1, gt=0, le=1, description="wsd: the share of all steps that falls, at the end."
    )


class TrainConfig(Section):
    """Length, order and place of the run."""

    output_dir: PathText = Field(description="Directory of the run. Relative to the working directory.")
    epochs: float = Field(
        1, gt=0, description="Passes over the training data; 1.5 ends in the middle of the second."
    )
    max_steps: Positive | None = Field(
        None, description="Optimizer steps; where set, epochs is not used. null: as epochs says."
    )
    rows_per_step: Positive = Field(
        1,
        description="Packed rows of an optimizer step, over all devices; a multiple of the devices with rows of their "
        "own (all, or --devices / parallel.context), each of which sums its share (gradient accumulation).",
    )
    seed: int = Field(42, ge=0, lt=2**32, description="Seed of data order, adapters and dropout.")
    recompute: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more time."
    )
    eval_every: Positive | None = Field(
        None, description="Steps between evaluations on data.eval. null: only at the end."
    )


class ParallelConfig(Section):
    """Where the run computes."""

    device: choices.Device = Field("auto", description="auto: a GPU where there is one.")
    threads: Positive | None = Field(
        None, description="CPU threads of a process. null: the usable cores, shared by the processes."
    )
    expert: Positive = Field(
        1,
        description="Processes that share the experts of a model (expert parallelism); the others are replicas.",
    )
    context: Positive = Field(
        1,
        description="Processes that share each row, for rows too long for one (context parallelism): every one has a "
        "part of the tokens, and for attention a part of the heads. Must divide the model's attention heads.",
    )
    shard: choices.Shard = Field(
        "none",
        description="What processes with the same weights spread over themselves instead of each keeping all (ZeRO 1 "
        "to 3). optimizer: AdamW's state; gradients: these as well; parameters: also the weights of decoder layers, "
        "trained or not, which are fetched a layer at a time. With one process nothing changes.",
    )
    timeout: Annotated[float, Field(gt=0)] = Field(
        600.0,
        description="Seconds that a process waits for others before the run ends and tells who is missing.",
    )


class CheckpointConfig(Section):
    """What is kept of the run while it goes on."""

    save_every: Positive | None = Field(
        None, description="Steps between checkpoints. null: only at the end and on an interrupt."
    )
    keep: Positive = Field(
        2,
        description="Newest complete checkpoints that are kept; the best (eval.best_metric) is beside them.",
    )


class LogConfig(Section):
    """What the run reports."""

    every: Positive = Field(1, description="Steps between log lines.")
    tensorboard: bool = Field(True, description="Also write TensorBoard files in the run's directory.")


class Schema(Section):
    """Every section of a run. `erniekit.config.Config` adds the rules between them."""

    task: choices.Task = Field(
        "sft", description="What is learnt: answers (sft), or preferences between two answers (dpo)."
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
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
