"""`erniekit train`: fine-tunes a model from a YAML file."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from erniekit.cli.train_options import (
    DEFAULT_GPU,
    ConfigFile,
    Devices,
    DryRun,
    Force,
    Master,
    NodeRank,
    Nodes,
    NoWeights,
    Overrides,
    PlannedGpuKind,
    PlannedGpus,
    Resume,
    ShowAll,
)

if TYPE_CHECKING:
    from erniekit.config import Config
    from erniekit.launch.launch import LaunchPlan
    from erniekit.train.planner.gpus import Gpu


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Resume = False,
    devices: Devices = None,
    nodes: Nodes = 1,
    node_rank: NodeRank = None,
    master: Master = None,
    dry_run: DryRun = False,
    no_weights: NoWeights = False,
    show_all: ShowAll = False,
    force: Force = False,
    gpus: PlannedGpus = None,
    gpu: PlannedGpuKind = None,
) -> None:
    """Fine-tune a model from a YAML file.

    The output directory (train.output_dir) receives the resolved configuration, a log, TensorBoard files and
    checkpoints, and with several processes logs/rank-N.log. Ctrl-C finishes the step, saves a checkpoint and prints the
    command to resume. If a process dies, the run ends. paddle.distributed.launch, Slurm (srun) and Kubernetes
    (PaddleJob) can start the processes too: see examples/launch.

    Examples:

    \b
      erniekit train run.yaml --dry-run
      erniekit train run.yaml --dry-run --gpus 8 --gpu h100-80gb
      erniekit train run.yaml optimizer.learning_rate=1e-4 data.train=[a.jsonl,b.jsonl]
      erniekit train run.yaml --resume
      erniekit train run.yaml --devices 0,1,2,3 parallel.expert=4
      erniekit train run.yaml --devices cpu:4
      erniekit train run.yaml --nodes 2 --node-rank 0 --master 10.0.0.1:6170    (--node-rank 1 on the other machine)
    """
    if not dry_run:
        _refuse_options_of_dry_run(no_weights, show_all, gpus is not None or gpu is not None)

    from erniekit.distributed.startup import reporting_failure
    from erniekit.launch import launch
    from erniekit.train.trackers.installed import check_installed

    chosen = launch.parse_devices(devices) if devices is not None else None
    places = launch.parse_nodes(nodes, node_rank, master)
    worker = launch.launched_worker(places, chosen)
    ranks = launch.node_workers(places, chosen) if worker is None else [worker]
    with reporting_failure([] if dry_run else ranks, f"machine {places.rank}" if worker is None else ""):
        settings = _load_settings(config, overrides or [], None if chosen is None else chosen.kind, resume)
        if (places.rank if worker is None else worker.rank) == 0:
            check_installed(settings.log)
        if worker is not None:
            launch.set_worker_variables(worker, settings.parallel.device)
        settings = _locate(settings, dry_run=dry_run, weights=not no_weights, resume=resume)
        plan = launch.plan_launch(chosen, places, settings.parallel.device) if worker is None else None
        several = plan if plan is not None and plan.world > 1 and not dry_run else None
        if several is not None:
            _check_before_launch(settings, several, resume=resume)
    if several is not None:
        arguments = [
            *("train", str(config), *(overrides or [])),
            *([f"model.revision={settings.model.revision}"] if settings.model.revision else []),
            *(["--devices", devices] if devices else []),
            *(["--force"] if force else []),
        ]
        raise typer.Exit(_run_processes(several, arguments, resume, Path(settings.train.output_dir)))
    if plan is not None:
        launch.use_device(plan.devices)

    if dry_run:
        from erniekit.train.dry_run import dry_run_training

        dry_run_training(
            settings,
            processes=plan.world if plan is not None else ranks[0].world,
            no_weights=no_weights,
            show_all=show_all,
            target=_planned_gpus(gpus, gpu),
        )
        return
    from erniekit.train.run import run_training

    raise typer.Exit(run_training(settings, resume=resume, force=force))


def _refuse_options_of_dry_run(no_weights: bool, show_all: bool, plans_gpus: bool) -> None:
    """Raises BadParameter if an option is given that only --dry-run has."""
    for option, given in {"--no-weights": no_weights, "--all": show_all, "--gpus": plans_gpus}.items():
        if given:
            instead = "; --devices 0,1,2,3 names the GPUs of a run" if option == "--gpus" else ""
            raise typer.BadParameter(f"it can only be used with --dry-run{instead}", param_hint=option)


def _load_settings(config: Path, overrides: list[str], device: str | None, resume: bool) -> "Config":
    """Loads the configuration; `device` replaces parallel.device. Raises ConfigError to resume a run that was moved."""
    from erniekit.config import load_config

    settings = load_config(config, [*overrides, *([] if device is None else [f"parallel.device={device}"])])
    if resume and not any(text.startswith("train.output_dir=") for text in overrides):
        from erniekit.train.run_directory import refuse_moved_run

        refuse_moved_run(config, settings)
    return settings


def _locate(settings: "Config", *, dry_run: bool, weights: bool, resume: bool) -> "Config":
    """As `locate_model`. A dry run does not download weights, which may be hundreds of GB."""
    from erniekit.checkpoint.download import locate_model

    if not dry_run:
        return locate_model(settings, resume=resume)
    found = locate_model(settings, weights=weights, download=False, resume=resume)
    if found is settings and weights:
        found = locate_model(settings, weights=False, resume=resume)
    return found


def _planned_gpus(gpus: int | None, gpu: str | None) -> "tuple[int, Gpu] | None":
    """Number and kind of the GPUs that --dry-run plans for; None for the devices of this machine."""
    from erniekit.train.planner.gpus import find_gpu

    return None if gpus is None and gpu is None else (gpus or 1, find_gpu(gpu or DEFAULT_GPU))


def _check_before_launch(settings: "Config", plan: "LaunchPlan", *, resume: bool) -> None:
    """Raises ErnieKitError for what can be known before the processes start."""
    from erniekit.train.preflight import check_before_launch
    from erniekit.train.run_lock import refuse_second_run

    check_before_launch(settings, plan.world, resume=resume, is_main=plan.nodes.rank == 0)
    # Before this run writes to the logs of the other run.
    refuse_second_run(Path(settings.train.output_dir))


def _run_processes(plan: "LaunchPlan", arguments: list[str], resume: bool, run: Path) -> int:
    """Runs `erniekit arguments` on all devices of this machine; returns the exit status."""
    from erniekit.checkpoint.parts import is_saving
    from erniekit.launch import launch

    resume_command = launch.command_line([*arguments, *launch.node_options(plan.nodes), "--resume"])
    return launch.run_processes(
        plan,
        [*arguments, *(["--resume"] if resume else [])],
        run / "logs",
        lambda: resume_command if any(run.glob("checkpoint-*")) else None,
        lambda: is_saving(run),
    )
