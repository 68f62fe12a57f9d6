"""Answers of transformers' models, in this environment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from erniekit.data.load.loader import load_row
from erniekit.data.media.item import MediaSpec
from erniekit.errors import VerifyError
from erniekit.export.engines.answers import Answer
from erniekit.export.engines.prompts import Prompt
from erniekit.export.verify_transformers import load_in_transformers, torch_inputs
from erniekit.models.config import ErnieConfig

NAME = f"transformers {transformers.__version__}"


def transformers_answers(
    directory: Path,
    config: ErnieConfig,
    prompts: Sequence[Prompt],
    spec: MediaSpec | None,
    max_new_tokens: int,
) -> dict[str, Answer]:
    """The greedy answers of exactly `max_new_tokens` tokens. Raises VerifyError if the directory does not load."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model, problems = load_in_transformers(directory, config)
    except (RuntimeError, ValueError, OSError, KeyError, ImportError) as error:
        raise VerifyError(f"{NAME} cannot load it: {type(error).__name__}: {str(error)[:500]}") from error
    if problems:
        raise VerifyError(f"{NAME} reports problems when loading it: {problems}")
    return dict(_answers(model, prompts, spec, max_new_tokens))


def _answers(
    model: Any, prompts: Sequence[Prompt], spec: MediaSpec | None, max_new_tokens: int
) -> Iterator[tuple[str, Answer]]:
    # Explicit settings: what is None here, such as the end tokens, is taken from the model otherwise.
    greedy = transformers.GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    model.generation_config = greedy
    for prompt in prompts:
        inputs = torch_inputs(load_row([prompt.document], spec), spec)
        ids = inputs["input_ids"][0]
        with torch.no_grad():
            read = _logprobs(model(**inputs).logits[0, :-1], ids[1:])
            output = model.generate(**inputs, generation_config=greedy)
        tokens = output.sequences[0, len(ids) :]
        said = _logprobs(torch.cat(output.logits), tokens)
        yield prompt.name, Answer(ids.tolist(), read, tokens.tolist(), said)


def _logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> list[float]:
    """Log-probabilities of tokens [n] by logits [n, vocab]."""
    chosen = logits.double().log_softmax(-1).gather(1, tokens[:, None])
    result: list[float] = chosen[:, 0].tolist()
    return result
