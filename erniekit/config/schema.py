"""The schema of a run's configuration: every section, field, unit, default and range.

The models are frozen, refuse unknown keys and convert types only where nothing is lost (`erniekit.config.section`).
Relations between fields are in `erniekit.config.rules`.
"""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from erniekit.config import choices
from erniekit.config.evaluation import EvalConfig
from erniekit.config.rules import CONFLICT, find_conflicts
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


class SourceConfig(Section):
    """One source of samples."""

    path: PathText = Field(
        description="A file (JSON lines, a JSON array, parquet, csv, txt; .gz too), a directory, a pattern such as "
        "chats/*.jsonl, or hub:owner/name[:split]. Relative to the working directory."
    )
    weight: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Its share of the samples, relative to the other weights, with data.mix weighted."
    )
    format: choices.DataFormat | None = Field(None, description="Format of its samples. null: data.format.")
    columns: dict[Text, Text] | None = Field(
        None,
        description="Its own names for keys of a format, as in {messages: dialogue, images: pics}. null: it has none.",
    )


def _as_sources(value: Any) -> Any:
    """A path alone stands for a source with that path."""
    listed = [value] if isinstance(value, str | dict) else value
    if not isinstance(listed, list):
        return listed
    return [{"path": item} if isinstance(item, str) else item for item in listed]


SourceList = Annotated[list[SourceConfig], BeforeValidator(_as_sources)]


class DataConfig(Section):
    """The conversations, and how they become packed rows of tokens."""

    train: Annotated[SourceList, Field(min_length=1)] = Field(
        description="Sources of training samples; a path alone stands for {path: ...}."
    )
    eval: SourceList = Field([], description="Held-out sources; their loss is reported, never trained on.")
    format: choices.DataFormat = Field(
        "auto", description="Format of the samples. auto: told from the keys of each sample."
    )
    mix: choices.Mix = Field(
        "concat",
        description="How several sources are mixed. concat: every sample once an epoch; interleave: a sample of each "
        "in turn; weighted: drawn by weight, as many an epoch as all sources have.",
    )
    stop: choices.Stop = Field(
        "first_exhausted",
        description="With mix interleave: what ends an epoch; shorter sources begin again until all are exhausted.",
    )
    template: choices.TemplateName = Field(
        "auto", description="Chat template. auto: told from the checkpoint."
    )
    loss_on: choices.LossOn = Field(
        "all",
        description="Which answers are learnt. all: every one; last_turn: those after the last user message; "
        "each_turn: every one, in a document of its own that ends with it, as the model will meet it.",
    )
    reasoning: choices.Reasoning = Field(
        "train",
        description="What the assistant thinks before it answers: learnt (train), read only (mask), "
        "or left out (drop).",
    )
    max_length: Positive = Field(8192, description="Tokens in a packed row: the micro-batch.")
    on_long: choices.OnLong = Field(
        "error",
        description="A sample of more than max_length tokens is an error (see on_error), loses its oldest exchanges "
        "(trim_history), or is left out and counted (drop). Plain text is cut into pieces instead.",
    )
    share_prompt: bool = Field(
        True,
        description="With task dpo: the prompt of a pair stands once in a row, before both answers. false: once for "
        "each; the results are the same.",
    )
    shuffle: bool = Field(True, description="Draw the samples of each epoch in a new, seeded order.")
    streaming: bool = Field(
        False,
        description="Read and encode samples as they are needed, and keep nothing on disk; needs train.max_steps. Each "
        "data-parallel process encodes its own share, so a run continues with the same number of them.",
    )
    buffer: Positive = Field(
        2048,
        description="With streaming: samples that each data-parallel process reads, shuffles and packs together.",
    )
    cache: bool = Field(
        True,
        description="Keep encoded samples on disk, so that the next run starts at once. false: they go with the run. "
        "Datasets of the hub stay in cache_dir in either case.",
    )
    cache_dir: PathText | None = Field(
        None, description="Where they are kept. null: erniekit/data in XDG_CACHE_HOME, or in ~/.cache."
    )
    allow_urls: bool = Field(
        False, description="Fetch pictures and videos that samples name by http(s) address."
    )
    on_error: choices.OnError = Field(
        "raise", description="A sample that cannot be used stops the run (raise) or is counted (skip)."
    )
    max_errors: NotNegative = Field(
        100, description="With on_error skip: more skipped samples than this, of all processes, stop the run."
    )
    min_pixels: Positive | None = Field(
        None, description="Pixels to which a smaller picture is enlarged. null: the checkpoint's."
    )
    max_pixels: Positive | None = Field(
        None, description="Pixels to which a larger picture is reduced. null: the checkpoint's."
    )
    video_fps: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Frames taken of a second of video. null: the checkpoint's, or 2."
    )
    video_min_frames: Positive | None = Field(
        None, description="Fewest frames taken of a video that has as many. null: the checkpoint's, or 16."
    )
    video_max_frames: Positive | None = Field(
        None, description="Most frames taken of a video. null: the checkpoint's, or 180."
    )
    video_sampling: choices.VideoSampling = Field(
        "leading", description="Which frame of each interval is taken; leading is what engines take."
    )
    video_timestamps: bool | None = Field(
        None, description="Draw its time on each frame. null: as the checkpoint says."
    )
    video_min_pixels: Positive | None = Field(
        None, description="Pixels to which smaller frames are enlarged. null: the checkpoint's."
    )
    video_max_pixels: Positive | None = Field(
        None, description="Pixels to which larger frames are reduced. null: the checkpoint's."
    )
    workers: NotNegative = Field(
        2, description="Processes that encode samples and decode pictures ahead of training. 0: none."
    )


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


class Config(Section):
    """A whole run. Made by `erniekit.config.load_config`, or in Python with the same checks."""

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

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        conflicts = list(find_conflicts(self))
        if conflicts:
            text = "; ".join(f"{conflict.keys[0]}: {conflict.message}" for conflict in conflicts)
            raise PydanticCustomError(CONFLICT, "{text}", {"text": text, "conflicts": conflicts})
        return self
