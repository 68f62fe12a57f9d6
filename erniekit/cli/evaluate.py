"""`erniekit eval`: loss, perplexity and generated answers of a model."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from erniekit.cli.evaluate_options import (
    Batch,
    Data,
    Generate,
    Html,
    JsonFile,
    MaxNewTokens,
    Metrics,
    Min,
    MinExactMatch,
    Model,
    OnError,
    Output,
    Run,
    Temperature,
)
from erniekit.cli.options import (
    Device,
    Dtype,
    Limit,
    MinP,
    RepetitionPenalty,
    SampleFormat,
    Seed,
    Stop,
    Template,
    Threads,
    TopK,
    TopP,
)
from erniekit.config import choices
from erniekit.config.evaluation import EvalConfig

if TYPE_CHECKING:
    from erniekit.config import Config
    from erniekit.data.chat.template import Template as ChatTemplate
    from erniekit.data.encode.encoder import Encoder
    from erniekit.data.encode.stats import ErrorBudget
    from erniekit.evaluation.dataset import EvalDataset, EvalPlan, EvalSample
    from erniekit.evaluation.evaluate import Evaluation, OnPrediction, Prediction
    from erniekit.evaluation.report import EvalSettings
    from erniekit.generation.load import ModelSource
    from erniekit.generation.sampling import Sampling

_YAML = (".yaml", ".yml")
_WITHOUT_RUN = EvalConfig(batch=128)


def evaluate(
    model: Model = None,
    data: Data = None,
    config: Run = None,
    format: SampleFormat = None,
    template: Template = None,
    limit: Limit = None,
    on_error: OnError = None,
    metrics: Metrics = None,
    generate: Generate = True,
    max_new_tokens: MaxNewTokens = None,
    batch: Batch = None,
    temperature: Temperature = None,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    stop: Stop = None,
    seed: Seed = 0,
    output: Output = None,
    json_file: JsonFile = None,
    html: Html = None,
    min_metric: Min = None,
    min_exact_match: MinExactMatch = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Evaluate a model: loss, perplexity and generated answers.

    Reports loss and perplexity of the reference answers (with data.loss_on each_turn, of the last one of each chat) by
    source and by modality (text, images, videos); for preference pairs, also accuracy and margin, with the run's
    reference model. Generates and scores the last answer of each chat. An exact match equals the reference and is ended
    by the model; with a thinking template, reasoning does not count.

    Examples:

    \b
      erniekit eval runs/digits --data data/digits/heldout.jsonl
      erniekit eval exports/digits --data heldout.jsonl --html answers.html --min-exact-match 0.95
      erniekit eval run.yaml --metrics auto,anls --min call_match=0.9 --json figures.json
    """
    model, config = _model_and_config(model, config, data)
    minimums = _minimums(min_metric or [], min_exact_match)
    chosen = None if metrics is None else _metrics(metrics)
    if not generate:
        _refuse_without_answers(("--min", minimums), ("--output", output), ("--html", html))

    from erniekit.display.text import counted
    from erniekit.evaluation.dataset import make_plan
    from erniekit.evaluation.report import EvalSettings, check_result
    from erniekit.generation.sampling import Sampling
    from erniekit.kernels.choice import describe_forms
    from erniekit.runtime import compute_dtype, configure

    computed = compute_dtype(dtype, configure(device, threads, seed=0))
    source, run = _source(model, config)
    defaults = _WITHOUT_RUN if run is None else run.eval
    sampling = Sampling(
        max_new_tokens=defaults.max_new_tokens if max_new_tokens is None else max_new_tokens,
        temperature=defaults.temperature if temperature is None else temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=tuple(stop or ()),
        seed=seed,
    )
    encoder = source.encoder(template)
    budget = _budget(on_error, run)
    samples = _samples(encoder, data or [], run, format, answers=generate, limit=limit, budget=budget)
    # Before loading the weights, so that errors in the data are reported at once.
    plan = make_plan(samples, encoder.template, (*(chosen or defaults.metrics), *minimums))
    typer.echo(f"{source.title}: {counted(plan.samples, 'sample')}, template {encoder.template.name}")
    typer.echo(describe_forms(computed))
    outputs = _Outputs(output, json_file, html, encoder.template)
    result, pairs = _run(source, computed, samples, plan, sampling, batch or defaults.batch, outputs)
    settings = EvalSettings(
        str(source.checkpoint), encoder.template.name, sampling if generate else None, pairs
    )
    _report(result, settings, budget, outputs)
    check_result(result, minimums)


def _model_and_config(
    model: Path | None, config: Path | None, data: list[str] | None
) -> tuple[Path | None, Path | None]:
    """Model and config, from the options and MODEL, which may be either. Raises BadParameter if both are missing."""
    if model is not None and config is None and model.suffix in _YAML and model.is_file():
        model, config = None, model
    if model is None and config is None:
        raise typer.BadParameter("name a model, or a run with --config", param_hint="MODEL")
    if not data and config is None:
        raise typer.BadParameter("name data files, or a run with --config", param_hint="--data")
    return model, config


class _Outputs:
    """The output files: answers as JSON lines, metrics as JSON, and the HTML page."""

    def __init__(
        self, answers: Path | None, metrics: Path | None, html: Path | None, template: "ChatTemplate"
    ) -> None:
        from erniekit.evaluation.report_page import ReportPage

        self.answers, self.metrics, self.html = answers, metrics, html
        self.page = ReportPage(template)

    def open(self, stack: ExitStack) -> "OnPrediction":
        """A function that takes each answer; the stack closes the file of answers."""
        from erniekit.evaluation.report import writing_predictions

        write = None if self.answers is None else stack.enter_context(writing_predictions(self.answers))

        def take(sample: "EvalSample", prediction: "Prediction") -> None:
            if write is not None:
                write(prediction)
            if self.html is not None:
                self.page.add(sample, prediction)

        return take


def _source(model: Path | None, config: Path | None) -> "tuple[ModelSource, Config | None]":
    """The model, and the config of the run, which sets how samples are encoded and answered, if there is one."""
    import dataclasses

    from erniekit.config import load_config
    from erniekit.generation.load import find_model

    if config is None:
        assert model is not None, "one of them is given"
        return find_model(model), None
    run = load_config(config)
    source = find_model(model or run.train.output_dir)
    dpo = run.dpo if run.task == "dpo" else None
    found = dataclasses.replace(source, data=run.data, seed=run.train.seed, base=run.model.path, dpo=dpo)
    return found, run


def _budget(on_error: choices.OnError | None, run: "Config | None") -> "ErrorBudget":
    """The budget for samples that cannot be used; it may skip any number of them."""
    from erniekit.data.encode.stats import ErrorBudget

    return ErrorBudget(
        on_error or ("raise" if run is None else run.data.on_error), sys.maxsize, skip="--on-error skip"
    )


def _samples(
    encoder: "Encoder",
    files: list[str],
    run: "Config | None",
    format: str | None,
    *,
    answers: bool,
    limit: int | None,
    budget: "ErrorBudget",
) -> "EvalDataset":
    """The samples of the files, or of the run's data.eval if there are none."""
    from erniekit.data.media.access import NO_URLS, MediaAccess
    from erniekit.evaluation.dataset import EvalDataset, find_files
    from erniekit.paths import expand_path

    data = None if run is None else run.data
    return EvalDataset(
        find_files([expand_path(file) for file in files], data, format, typer.echo),
        encoder,
        answers=answers,
        limit=limit,
        budget=budget,
        access=NO_URLS if data is None else MediaAccess.of(data),
    )


def _run(
    source: "ModelSource",
    dtype: str,
    samples: "EvalDataset",
    plan: "EvalPlan",
    sampling: "Sampling",
    batch: int,
    outputs: _Outputs,
) -> "tuple[Evaluation, str]":
    """Loads the model and evaluates the samples, with progress. Also returns how preference pairs are scored."""
    from erniekit.display.progress import show_progress
    from erniekit.display.text import counted
    from erniekit.evaluation.evaluate import evaluate as run_evaluation
    from erniekit.evaluation.pair_scoring import NO_REFERENCE, pair_scoring
    from erniekit.generation.detokenizer import Detokenizer

    text = Detokenizer.from_checkpoint(source.directory)
    model = source.load(dtype)
    pairs = NO_REFERENCE
    if plan.pairs:
        pairs = pair_scoring(source, model, dtype)
        typer.echo(f"{counted(plan.pairs, 'preference pair')}: {pairs.description}")
    with ExitStack() as stack:
        result = run_evaluation(
            model,
            samples.encoder,
            text,
            samples,
            plan,
            sampling,
            pairs=pairs,
            batch_size=batch,
            budget=samples.budget,
            on_prediction=outputs.open(stack),
            on_progress=stack.enter_context(show_progress()),
        )
    return result, pairs.description if plan.pairs else ""


def _report(result: "Evaluation", settings: "EvalSettings", budget: "ErrorBudget", outputs: _Outputs) -> None:
    """Prints the results and writes the page and the JSON report."""
    from erniekit.evaluation import report

    for line in [*report.format_mistakes(result), *report.format_skipped(budget)]:
        typer.echo(line)
    if outputs.answers is not None:
        typer.echo(f"answers written to {outputs.answers}")
    if outputs.html is not None:
        report.write_text(outputs.page.render(result, settings), outputs.html)
        typer.echo(f"page written to {outputs.html}")
    if outputs.metrics is not None:
        report.write_report(report.report_values(result, settings, budget), outputs.metrics)
        typer.echo(f"metrics written to {outputs.metrics}")
    for line in [*report.format_tables(result), *report.format_summary(result, settings.sampling)]:
        typer.echo(line)


def _metrics(texts: list[str]) -> tuple[str, ...]:
    """The names in --metrics."""
    from erniekit.errors import ConfigError
    from erniekit.evaluation.metrics.choose import parse_names

    try:
        return parse_names(texts)
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--metrics") from error


def _minimums(texts: list[str], exact_match: float | None) -> dict[str, float]:
    """The minimum of each metric in --min and --min-exact-match, from 0 to 1."""
    from erniekit.errors import ConfigError
    from erniekit.evaluation.metrics.choose import check_name

    minimums = {} if exact_match is None else {"exact_match": exact_match}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            check_name(name)
            share = float(value)
        except ConfigError as error:
            raise typer.BadParameter(str(error), param_hint="--min") from error
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise typer.BadParameter(
                f"{text!r} must be METRIC=SHARE, with a share from 0 to 1, such as token_f1=0.8",
                param_hint="--min",
            )
        minimums[name] = share
    return minimums


def _refuse_without_answers(*options: tuple[str, object]) -> None:
    for name, value in options:
        if value:
            raise typer.BadParameter("there are no answers with --no-generate", param_hint=name)
