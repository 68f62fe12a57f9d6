"""`erniekit verify --engine`: the same prompts in Paddle and in engines, and one table of their differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from erniekit.checkpoint.hub import read_index
from erniekit.config.choices import Engine
from erniekit.data.encode.encoder import make_encoder
from erniekit.data.media.item import MediaSpec
from erniekit.display.text import format_table
from erniekit.errors import ErnieKitError, VerifyError
from erniekit.export.check import INSTALL_TORCH, Check
from erniekit.export.engines.answers import (
    ROUNDED_TOLERANCE,
    TOLERANCE,
    Answer,
    PaddleAnswer,
    Row,
    compare,
    paddle_answers,
    table,
)
from erniekit.export.engines.faults import fault_notes, head_size_problem, quantized_problem
from erniekit.export.engines.loaders import check_loader
from erniekit.export.engines.options import EngineOptions
from erniekit.export.engines.process import LLAMA, VLLM, Environment, Response, ask, find_python
from erniekit.export.engines.prompts import Prompt, make_prompts
from erniekit.export.gguf import write_gguf
from erniekit.export.quantized import model_config, read_quantization, read_quantized_model
from erniekit.generation.load import find_model
from erniekit.models.specs import is_router_tensor
from erniekit.scratch import temporary_directory

_NEW_TOKENS = 16
# Engines that need a GPU of their own, or an installation that this project does not make.
NOT_RUN: tuple[Engine, ...] = ("sglang", "fastdeploy", "paddleformers")


def verify_engines(directory: Path, options: EngineOptions) -> Iterator[Check]:
    """Compare a checked directory with engines: lines about each, and the table at the end."""
    rows: list[Row] = []
    comparison = _Comparison(directory, options)
    for engine in options.engines:
        failed = False
        for check in check_loader(engine, directory, comparison.config):
            failed = failed or check.status == "FAIL"
            yield replace(check, text=f"{engine}: {check.text}")
        if failed:
            rows.append(Row(engine, "", "FAIL", "not run", None))
        elif engine in NOT_RUN:
            rows.append(Row(engine, "", "ok", "not run", None))
            yield Check(
                "note",
                f"{engine} was not run: checked were the names, shapes and config keys that its loader reads",
            )
        else:
            try:
                yield from comparison.run(engine, rows)
            except ErnieKitError as error:
                yield Check("FAIL", f"{engine}: {error}")
                rows.append(Row(engine, "", "FAIL", "no answer", None))
    left_out = comparison.left_out
    if left_out:
        yield Check("note", f"left out, longer than the model's positions: {', '.join(left_out)}")
    yield from (Check("table", line) for line in format_table(table(rows)))
    yield from (Check(row.status, f"{row.engine}, {row.prompt}: {row.remark}") for row in rows if row.remark)


class _Comparison:
    """One directory, the prompts, and Paddle's answers, which are computed when the first engine needs them."""

    def __init__(self, directory: Path, options: EngineOptions) -> None:
        self.directory, self.options = directory, options
        self.config = model_config(directory)
        self._quantization = read_quantization(directory)
        self._encoder = make_encoder(directory)
        self.prompts: Sequence[Prompt] = make_prompts(self._encoder)
        if not self.prompts:
            raise VerifyError(
                f"{directory}: its max_position_embeddings are fewer than the tokens of any prompt"
            )

    @property
    def left_out(self) -> list[str]:
        """Prompts that the model has no room for."""
        kinds = ["text", "tool call"] + (["image", "video"] if self.spec is not None else [])
        return [kind for kind in kinds if kind not in {prompt.name for prompt in self.prompts}]

    @property
    def spec(self) -> MediaSpec | None:
        """How the model reads images and videos."""
        return self._encoder.media_spec

    @cached_property
    def expected(self) -> list[PaddleAnswer]:
        """Paddle's answers."""
        if self._quantization is not None:
            # Of the values that engines compute with: what rounding costs is in the report of the export.
            return paddle_answers(read_quantized_model(self.directory), self.prompts, self.spec, _NEW_TOKENS)
        source = self.options.source
        model = find_model(self.directory if source is None else source)
        return paddle_answers(replace(model, quantize="none").load(), self.prompts, self.spec, _NEW_TOKENS)

    @property
    def tolerance(self) -> float:
        """Allowed difference of log-probabilities."""
        if self._quantization is not None:
            return ROUNDED_TOLERANCE
        tensors = read_index(self.directory)
        narrow = any(info.dtype != "F32" for info in tensors.values() if not is_router_tensor(info.name))
        return ROUNDED_TOLERANCE if narrow and self.options.source is not None else TOLERANCE

    def run(self, engine: Engine, rows: list[Row]) -> Iterator[Check]:
        """Ask an engine; adds a row for each prompt. Raises VerifyError if it cannot run."""
        problems = (
            head_size_problem(self.config) if engine == "vllm" else None,
            quantized_problem(engine, self.config, self._quantization),
        )
        yield from (Check("note", problem) for problem in problems if problem is not None)
        if engine == "transformers":
            name, answers = _ask_transformers(self)
        else:
            response = self._ask(VLLM, self.directory) if engine == "vllm" else self._ask_llama()
            yield from fault_notes(response.faults, self.options.workarounds)
            name, answers = response.engine, response.answers
        for prompt, expected in zip(self.prompts, self.expected, strict=True):
            rows.append(compare(name, prompt, expected, answers[prompt.name], self.tolerance))

    def _ask_llama(self) -> Response:
        """llama.cpp on a GGUF file with the values of the directory."""
        # Before the file is written: without an environment there is nothing to do.
        find_python(LLAMA, self.options.python)
        with temporary_directory("erniekit-gguf-") as folder:
            written = write_gguf(self.directory, folder / "model.gguf", "f32")
            return self._ask(LLAMA, written.file)

    def _ask(self, environment: Environment, model: Path) -> Response:
        return ask(
            environment,
            find_python(environment, self.options.python),
            model,
            self.prompts,
            tokenizer=self.directory,
            family=self.config.family,
            max_new_tokens=_NEW_TOKENS,
            # vLLM has no kernels for packed weights in float32.
            dtype="bfloat16" if self._quantization is not None else "float32",
            trust_remote_code=self.options.trust_remote_code,
            workarounds=self.options.workarounds,
        )


def _ask_transformers(comparison: _Comparison) -> tuple[str, dict[str, Answer]]:
    try:
        from erniekit.export.engines.transformers_engine import NAME, transformers_answers
    except ImportError as error:
        raise VerifyError(f"torch is not installed: {INSTALL_TORCH}") from error
    answers = transformers_answers(
        comparison.directory, comparison.config, comparison.prompts, comparison.spec, _NEW_TOKENS
    )
    return NAME, answers
