"""The model of a run: its weights, its adapters, and which of its parameters are trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import paddle

from erniekit.checkpoint.model_files import open_model
from erniekit.checkpoint.resize import NO_CHANGES, ModelChanges
from erniekit.checkpoint.weights import load_fully_sharded, load_model
from erniekit.config import Config, LoraConfig
from erniekit.config.choices import Shard
from erniekit.config.rules import router_settings
from erniekit.data.media.patches import ImageSpec
from erniekit.distributed.mesh import Mesh
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.errors import ConfigError
from erniekit.lora.adapters import load_adapter
from erniekit.lora.targets import LoraMatch, add_adapters, linear_shapes, match_of, match_targets
from erniekit.models.config import ErnieConfig
from erniekit.models.config_keys import unknown_keys_message
from erniekit.models.ernie import ErnieModel
from erniekit.models.factory import parameter_specs
from erniekit.models.layer_runner import CheckpointedLayers
from erniekit.models.specs import TensorSpec, is_vocab_tensor
from erniekit.parallel.context_parallel import apply_context_parallel
from erniekit.parallel.data_parallel import DataParallelReducer, GradientReducer
from erniekit.parallel.expert_parallel import apply_expert_parallel
from erniekit.parallel.fully_sharded import FullyShardedLayers
from erniekit.parallel.zero import ZeroReducer
from erniekit.train.dpo import caches_with_copy, trains_beside_copy
from erniekit.train.memory import ModelPlan, ShardingPlan, activation_bytes, describe_model, plan_model
from erniekit.train.parameters import check_routers, trained_names
from erniekit.train.plan import describe_lora, describe_parallel_dims, describe_vocab

_DTYPE_NAMES = {"float32": "F32", "bfloat16": "BF16"}


@dataclass(frozen=True)
class PreparedModel:
    """A model ready to be trained, and its trained parameters in the model's order.

    trained: those that this process holds, perhaps no expert; all_trained: the names of those of the whole model.
    fully_sharded: the layers that processes share (parallel.shard parameters); changes: to the base's `config.json`.
    """

    model: ErnieModel
    trained: list[tuple[str, paddle.Tensor]]
    all_trained: list[str]
    fully_sharded: FullyShardedLayers | None = None
    changes: ModelChanges = NO_CHANGES


@dataclass(frozen=True)
class _Choice:
    """What is trained of a whole model, whichever process holds it: every parameter, adapters among them.

    rows_before, rows: of the embedding, in the checkpoint and in memory.
    """

    matches: list[LoraMatch]
    specs: list[TensorSpec]
    trained: list[str]
    rows_before: int
    rows: int


def lora_alpha(lora: LoraConfig) -> float:
    """lora.alpha, or its default of twice the rank."""
    return 2.0 * lora.rank if lora.alpha is None else lora.alpha


def prepare_model(
    config: Config,
    dtype: str,
    image_spec: ImageSpec | None,
    checkpoint: Path | None,
    log: Callable[[str], None],
    mesh: Mesh | None = None,
    changes: ModelChanges = NO_CHANGES,
) -> PreparedModel:
    """Load the model, put adapters on it, mark what is trained, and say so.

    `checkpoint`: the training checkpoint whose weights or adapters are taken in place of the base's. `mesh`: the
    processes that share the model and its rows. `changes`: to the base's `config.json`. Raises
    CheckpointError where files do not fit, ConfigError where lora.targets or model.freeze match nothing.
    """
    lora = config.lora
    weights = Path(config.model.path) if lora.enabled or checkpoint is None else checkpoint
    before = ErnieConfig.from_dir(config.model.path)
    choice = _choose(config, before, dtype, changes)
    log(f"model: loading {weights} in {dtype}")
    model, fully_sharded = load_shared(weights, dtype, mesh, config.parallel.shard, changes)
    if config.train.recompute and (mesh is None or mesh.world.size == 1):
        model.model.run = CheckpointedLayers(recompute=True)
    if image_spec is not None:
        model.image_mean, model.image_std = image_spec.image_mean, image_spec.image_std
    if lora.enabled:
        add_adapters(
            model,
            [match.module for match in choice.matches],
            rank=lora.rank,
            alpha=lora_alpha(lora),
            dropout=lora.dropout,
            seed=config.train.seed,
        )
    wanted = set(choice.trained)
    trained = []
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = name not in wanted
        if name in wanted:
            trained.append((name, parameter))
    if lora.enabled and checkpoint is not None:
        load_adapter(model, checkpoint)
    _describe(
        config, changes.apply(before), dtype, choice, log, mesh.dims if mesh is not None else ParallelDims()
    )
    return PreparedModel(model, trained, choice.trained, fully_sharded, changes)


def check_model(directory: Path, log: Callable[[str], None], *, weights: bool = True) -> None:
    """Check the files of the base model, from their headers, and say which keys of config.json are not known.

    Comes before data is encoded, which may take long. Without `weights` it reads config.json only. Raises
    CheckpointError.
    """
    config = open_model(directory)[0] if weights else ErnieConfig.from_dir(directory)
    unknown = unknown_keys_message(config.unknown, directory / "config.json")
    if unknown is not None:
        log(f"warning: {unknown}")


def load_shared(
    directory: Path, dtype: str, mesh: Mesh | None, shard: Shard, changes: ModelChanges = NO_CHANGES
) -> tuple[ErnieModel, FullyShardedLayers | None]:
    """A model as this process holds it: with its share of experts, rows and, where they are spread, layers."""
    if mesh is None or mesh.world.size == 1:
        return load_model(directory, dtype, changes=changes), None
    fully_sharded = None
    # Of slow disks, or one that the processes share, some may have read long before others.
    with mesh.busy("loading the model"):
        if shard == "parameters":
            model, fully_sharded = load_fully_sharded(directory, dtype, mesh, changes)
            model.model.run = CheckpointedLayers(fully_sharded, recompute=True)
        else:
            experts = mesh.expert
            model = load_model(
                directory, dtype, expert_rank=experts.rank, expert_ranks=experts.size, changes=changes
            )
    apply_expert_parallel(model, mesh.expert)
    apply_context_parallel(model, mesh.context)
    return model, fully_sharded


def make_gradient_reducer(config: Config, prepared: PreparedModel, mesh: Mesh) -> GradientReducer | None:
    """What becomes of gradients, into which the model's backward pass is made to run. None for one process."""
    if mesh.world.size == 1:
        return None
    shard = config.parallel.shard
    reducer: GradientReducer = (
        DataParallelReducer(mesh, prepared.trained)
        if shard == "none"
        else ZeroReducer(mesh, prepared.trained, shard, prepared.fully_sharded)
    )
    prepared.model.model.run = CheckpointedLayers(reducer.hooks, recompute=config.train.recompute)
    return reducer


def describe_model_plan(
    config: Config,
    dtype: str,
    log: Callable[[str], None],
    dims: ParallelDims,
    changes: ModelChanges = NO_CHANGES,
) -> None:
    """Say what `prepare_model` would do, from `config.json`.

    No parameter takes memory, whatever the size of the model. Raises as `prepare_model` does.
    """
    before = ErnieConfig.from_dir(config.model.path)
    choice = _choose(config, before, dtype, changes)
    _describe(config, changes.apply(before), dtype, choice, log, dims)


def plan_memory(config: Config, architecture: ErnieConfig, dtype: str, dims: ParallelDims) -> ModelPlan:
    """What training a model of that architecture takes of each process of a layout. No file is read.

    Raises ConfigError where lora.targets or model.freeze match nothing.
    """
    return _plan(config, architecture, dtype, _choose(config, architecture, dtype, NO_CHANGES), dims)


def _choose(config: Config, before: ErnieConfig, dtype: str, changes: ModelChanges) -> _Choice:
    """Read what the configuration trains against the whole model: a process may hold none of what a pattern names.

    Raises ConfigError where lora.targets or model.freeze match nothing, and where model.freeze covers new rows.
    """
    architecture = changes.apply(before)
    is_resized = architecture.vocab_size > before.vocab_size
    specs = parameter_specs(architecture, _DTYPE_NAMES[dtype])
    matches: list[LoraMatch] = []
    if config.lora.enabled:
        rank, linears = config.lora.rank, linear_shapes(specs)
        for module in match_targets(list(linears), config.lora.targets):
            outer, inner = linears[module]
            matches.append(match_of(module, inner, outer, rank))
            specs.append(TensorSpec(f"{module}.lora_A.weight", _DTYPE_NAMES[dtype], (rank, inner)))
            specs.append(TensorSpec(f"{module}.lora_B.weight", _DTYPE_NAMES[dtype], (outer, rank)))
    names = [spec.name for spec in specs]
    trained = trained_names(
        names,
        freeze=config.model.freeze,
        adapters=config.lora.enabled,
        train_router=config.lora.train_router,
        # Adapters hold no new rows: the tensors that have them are trained and saved whole.
        train_vocab=is_resized,
    )
    if is_resized:
        untrained = [name for name in names if is_vocab_tensor(name) and name not in trained]
        if untrained:
            raise ConfigError(
                f"model.freeze covers {untrained[0]}, whose new rows (model.resize_vocab) would stay untrained: thaw it"
            )
    check_routers(names, trained, router_settings(config))
    return _Choice(matches, specs, trained, before.vocab_size, architecture.vocab_size)


def _plan(
    config: Config, architecture: ErnieConfig, dtype: str, choice: _Choice, dims: ParallelDims
) -> ModelPlan:
    spread = ShardingPlan(dims.expert, dims.world, dims.replicas, config.parallel.shard)
    return plan_model(
        choice.specs,
        choice.trained,
        rows_per_step=config.train.rows_per_step,
        spread=spread,
        reference=trains_beside_copy(config),
        cached=caches_with_copy(config),
        activations=activation_bytes(architecture, config, 2 if dtype == "bfloat16" else 4, choice.trained),
    )


def _describe(
    config: Config,
    architecture: ErnieConfig,
    dtype: str,
    choice: _Choice,
    log: Callable[[str], None],
    dims: ParallelDims,
) -> None:
    plan = _plan(config, architecture, dtype, choice, dims)
    lines = describe_lora(choice.matches, config.lora.rank) if config.lora.enabled else []
    if config.model.resize_vocab:
        lines.insert(0, describe_vocab(choice.rows_before, choice.rows, adapters=config.lora.enabled))
    for line in [*describe_parallel_dims(dims), *lines, *describe_model(plan, dims.world)]:
        log(line)
