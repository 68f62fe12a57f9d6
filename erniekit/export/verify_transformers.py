"""Comparison of Paddle with transformers on a model directory: loading, logits of prompts, greedy answers.

The only module that imports torch. One model is in memory at a time, in float32 on the CPU.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from erniekit.data.encode.document import Document
from erniekit.data.encode.encoder import make_encoder
from erniekit.data.load.batch import PackedBatch
from erniekit.data.load.loader import load_row
from erniekit.data.media.item import Media, MediaSpec
from erniekit.display.text import counted
from erniekit.evaluation.dataset import load_samples
from erniekit.export.check import Check
from erniekit.export.engines.prompts import make_prompts
from erniekit.export.engines.router_ties import noting_ties
from erniekit.export.layouts import NESTED_MODEL_TYPE, transformers_config
from erniekit.export.reference import LOGITS_TOLERANCE
from erniekit.generation.detokenizer import Detokenizer
from erniekit.generation.generate import Generator
from erniekit.generation.load import find_model
from erniekit.generation.sampling import Sampling
from erniekit.models.config import ErnieConfig
from erniekit.objectives.device_batch import row_inputs
from erniekit.runtime import usable_cores

# Tokens count as equally probable if their logits differ by less than this share of the largest logit.
_TIE = 1e-4


@dataclass(frozen=True)
class Results:
    """Results of one implementation.

    logits [T, vocab] of each prompt, and the new tokens of each question; ties: for each question, by position in the
    answer, the tokens that were as probable as the chosen one; router_ties: of each prompt, the first token for which
    two experts are equally probable.
    """

    logits: list[np.ndarray]
    answers: list[list[int]]
    ties: list[dict[int, set[int]]] = field(default_factory=list)
    router_ties: list[int | None] = field(default_factory=list)


def compare_with_transformers(
    directory: Path, data: Path | None = None, samples: int = 8, max_new_tokens: int = 64
) -> Iterator[Check]:
    """Load a directory in transformers and in Paddle, and compare.

    Prompts: those of `make_prompts`. `data`: a file of chats; both implementations answer
    the first `samples` greedily. Raises ErnieKitError if data or tokenizer cannot be used.
    """
    config = ErnieConfig.from_dir(directory)
    encoder = make_encoder(directory)
    asked = make_prompts(encoder)
    prompts = {prompt.name: load_row([prompt.document], encoder.media_spec) for prompt in asked}
    chats = load_samples([data], encoder, limit=samples) if data is not None else []
    questions = [chat.prompt for chat in chats]
    text = Detokenizer.from_checkpoint(directory)
    torch.set_num_threads(usable_cores())
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model, problems = load_in_transformers(directory, config)
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        yield Check("FAIL", f"transformers cannot load it: {type(error).__name__}: {str(error)[:500]}")
        return
    if problems:
        yield Check("FAIL", f"transformers reports problems when loading it: {problems}")
        return
    yield Check(
        "ok", f"transformers {transformers.__version__} loads it without missing or unexpected weights"
    )
    inputs = (list(prompts.values()), questions, encoder.media_spec, text, max_new_tokens)
    theirs = _run_transformers(model, *inputs)
    del model
    gc.collect()
    ours = _run_paddle(directory, *inputs)
    long = sum(any(_is_long(item) for item in document.media) for document in questions)
    if long:
        chats_have = "1 chat has" if long == 1 else f"{long} chats have"
        yield Check(
            "note",
            f"{chats_have} a video with more token times than rows and columns, after which transformers "
            "computes other text positions than training, the released code, vLLM, SGLang and FastDeploy; the "
            "comparison uses the positions of training",
        )
    for compared in zip(prompts, ours.logits, theirs.logits, ours.router_ties, strict=True):
        yield _compare_logits(*compared)
    if chats:
        yield _compare_answers([chat.sample_id for chat in chats], ours.answers, theirs, text)


def torch_inputs(batch: PackedBatch, spec: MediaSpec | None) -> dict[str, torch.Tensor]:
    """One document as inputs of transformers' ERNIE models."""
    ids = torch.from_numpy(batch.input_ids)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if len(batch.grid_thw):
        assert spec is not None
        # Two frames make one token time; an image has t = 1.
        is_video = batch.grid_thw[:, 0] > 1
        patches = batch.grid_thw.prod(1)
        tokens = patches // np.where(is_video, 2, 1) // spec.image.merge_size**2
        kinds = torch.zeros_like(ids)
        kinds[0, torch.from_numpy(batch.media_positions)] = torch.from_numpy(1 + np.repeat(is_video, tokens))
        inputs["mm_token_type_ids"] = kinds.int()
        inputs["moe_mm_token_type_ids"] = torch.from_numpy(batch.modality.astype(np.int32))[None]
        pixels, of_video = torch.from_numpy(spec.image.normalise(batch.patches)), np.repeat(is_video, patches)
        for kind, chosen in (("image", ~is_video), ("video", is_video)):
            if chosen.any():
                suffix = "_videos" if kind == "video" else ""
                inputs[f"pixel_values{suffix}"] = pixels[of_video == (kind == "video")]
                inputs[f"{kind}_grid_thw"] = torch.from_numpy(batch.grid_thw[chosen].astype(np.int64))
        # transformers' positions after a long video differ from training, see `erniekit.data.encode.positions`.
        # The first of the four rows counts tokens, for the attention mask.
        rows = np.concatenate([np.arange(len(batch.input_ids))[None], batch.position_ids])
        inputs["position_ids"] = torch.from_numpy(rows)[:, None]
    return inputs


def _is_long(item: Media) -> bool:
    times, rows, columns = item.token_grid
    return times > max(rows, columns)


def load_in_transformers(directory: Path, config: ErnieConfig) -> tuple[Any, dict[str, list[str]]]:
    """The model in float32, and the weights reported as missing, unexpected or misshapen."""
    classes = {
        "dense": transformers.Ernie4_5ForCausalLM,
        "moe": transformers.Ernie4_5_MoeForCausalLM,
        "vl": transformers.Ernie4_5_VLMoeForConditionalGeneration,
    }
    options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True, "local_files_only": True}
    if config.family == "vl" and config.raw["model_type"] != NESTED_MODEL_TYPE:
        # transformers reads the flat form through remote code only, which is not run here.
        options["config"] = transformers.Ernie4_5_VLMoeConfig(**transformers_config(config, "F32"))
    model, info = classes[config.family].from_pretrained(str(directory), **options)
    return model.eval(), {kind: sorted(map(str, names))[:4] for kind, names in info.items() if names}


def _run_transformers(
    model: Any,
    prompts: Sequence[PackedBatch],
    questions: Sequence[Document],
    spec: MediaSpec | None,
    text: Detokenizer,
    max_new_tokens: int,
) -> Results:
    # Explicit settings, so that the generation_config.json of the directory has no effect.
    greedy = transformers.GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(text.eos_token_ids),
        pad_token_id=text.eos_token_ids[0],
        return_dict_in_generate=True,
        output_logits=True,
    )
    logits, answers, ties = [], [], []
    with torch.no_grad():
        for batch in prompts:
            logits.append(model(**torch_inputs(batch, spec)).logits[0].float().numpy())
        for document in questions:
            inputs = torch_inputs(load_row([document], spec), spec)
            output = model.generate(**inputs, generation_config=greedy)
            answers.append(output.sequences[0, len(document) :].tolist())
            ties.append(_ties(output.logits))
    return Results(logits, answers, ties)


def _ties(steps: Sequence[torch.Tensor]) -> dict[int, set[int]]:
    """By step of an answer, the tokens whose logits tie with the largest, from logits [1, vocab] of each step."""
    found = {}
    for place, (logits,) in enumerate(steps):
        best = torch.nonzero(logits >= logits.max() - _TIE * logits.abs().max())
        if len(best) > 1:
            found[place] = set(best.flatten().tolist())
    return found


def _run_paddle(
    directory: Path,
    prompts: Sequence[PackedBatch],
    questions: Sequence[Document],
    spec: MediaSpec | None,
    text: Detokenizer,
    max_new_tokens: int,
) -> Results:
    model = find_model(directory).load()
    logits, router_ties = [], []
    for batch in prompts:
        with noting_ties(model) as tie:
            logits.append(model.logits(model(row_inputs(batch)).hidden).numpy())
        router_ties.append(tie.position)
    generator = Generator(model, text.eos_token_ids, spec)
    answers = generator.generate(questions, Sampling(max_new_tokens=max_new_tokens))
    return Results(logits, [answer.ids for answer in answers], router_ties=router_ties)


def _compare_logits(name: str, ours: np.ndarray, theirs: np.ndarray, router_tie: int | None) -> Check:
    difference, where = _difference(ours, theirs), ""
    if difference > LOGITS_TOLERANCE and router_tie:
        difference = _difference(ours[:router_tie], theirs[:router_tie])
        where = f" in the first {counted(router_tie, 'token')} of {len(ours)}, before two experts are equally probable"
    message = f"logits of a prompt with {name}: Paddle and transformers differ by {difference:.2g} in norm"
    message += f" (allowed {LOGITS_TOLERANCE:g}){where}"
    return Check("ok" if difference <= LOGITS_TOLERANCE else "FAIL", message)


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def _compare_answers(
    names: Sequence[str], ours: Sequence[list[int]], theirs: Results, text: Detokenizer
) -> Check:
    differing = [i for i, (a, b) in enumerate(zip(ours, theirs.answers, strict=True)) if a != b]
    same = len(names) - len(differing)
    message = f"{same} of {len(names)} greedy answers are the same in Paddle and transformers"
    tied = [i for i in differing if _parted_at_a_tie(ours[i], theirs.answers[i], theirs.ties[i])]
    if tied:
        message += f", {len(tied)} diverge where two tokens are equally probable"
    wrong = [i for i in differing if i not in tied]
    if not wrong:
        return Check("ok", message)
    first = wrong[0]
    said = f"Paddle {text.decode_all(ours[first])!r}, transformers {text.decode_all(theirs.answers[first])!r}"
    return Check("FAIL", f"{message}; {names[first]}: {said}")


def _parted_at_a_tie(ours: list[int], theirs: list[int], ties: dict[int, set[int]]) -> bool:
    """Whether the first differing token is as probable as the other one."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    place = next((place for place, (a, b) in pairs if a != b), None)
    return place is not None and ours[place] in ties.get(place, ())
