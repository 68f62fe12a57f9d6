"""Rules between settings: each conflict with file, line and advice, and settings that are valid together."""

import pytest

from erniekit.config import load_config
from tests.unit.config.conftest import MINIMAL, Write, problems


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train:\n  eval_every: 5",
            "run.yaml:4: train.eval_every: needs data.eval, which is empty",
        ),
        (
            "eval:\n  samples: 9",
            "run.yaml:4: eval.samples: needs data.eval, which is empty",
        ),
        (
            "eval:\n  best_metric: eval/loss",
            "run.yaml:4: eval.best_metric: needs train.eval_every; without it the run is evaluated only at the end",
        ),
        (
            "train:\n  profile_steps: [4, 2]",
            "run.yaml:4: train.profile_steps: must be the first and the last step; 4 is after 2",
        ),
        (
            "eval:\n  patience: 3",
            "run.yaml:4: eval.patience: needs eval.best_metric, for example eval/loss",
        ),
        (
            "eval:\n  min_delta: 0.1",
            "run.yaml:4: eval.min_delta: has no effect unless eval.patience is set",
        ),
        (
            "lora:\n  rank: 16",
            "run.yaml:4: lora.rank: has no effect while lora.enabled is false; "
            "remove it, or set lora.enabled: true",
        ),
        (
            "lora:\n  train_router: true",
            "run.yaml:4: lora.train_router: has no effect while lora.enabled is false; "
            "remove it, or set lora.enabled: true",
        ),
        (
            "data:\n  train: [{path: a, weight: 2}]",
            "run.yaml:4: data.train: weights have no effect with data.mix concat; set data.mix: weighted",
        ),
        (
            "parallel:\n  shard: parameters",
            "run.yaml:4: parallel.shard: parameters needs train.recompute: layers; otherwise the backward pass keeps "
            "the weights of every layer",
        ),
        (
            "data:\n  stop: all_exhausted",
            "run.yaml:4: data.stop: has no effect unless data.mix is interleave",
        ),
        (
            "data:\n  streaming: true",
            "run.yaml:4: data.streaming: needs train.max_steps, because the length of a stream is unknown",
        ),
        (
            "data:\n  buffer: 10",
            "run.yaml:4: data.buffer: has no effect unless data.streaming is true",
        ),
        (
            "data:\n  allow_private_urls: true",
            "run.yaml:4: data.allow_private_urls: is only used with data.allow_urls: true",
        ),
        (
            "data:\n  video_min_frames: 9\n  video_max_frames: 8",
            "run.yaml:4: data.video_min_frames: 9 is above data.video_max_frames, which is 8",
        ),
        (
            "schedule:\n  warmup_steps: 11\ntrain:\n  max_steps: 10",
            "run.yaml:4: schedule.warmup_steps: 11 warm-up steps are more than train.max_steps, which is 10; "
            "set it to 1, or to 0 with schedule.warmup_ratio: 0.1",
        ),
        (
            "schedule:\n  min_learning_rate: 1e-3\noptimizer:\n  learning_rate: 1e-4",
            "run.yaml:4: schedule.min_learning_rate: 0.001 is above optimizer.learning_rate, which is 0.0001",
        ),
        (
            "schedule:\n  min_learning_rate: 1e-3",
            "run.yaml:4: schedule.min_learning_rate: 0.001 is above optimizer.learning_rate, which is 1e-05",
        ),
        (
            "schedule:\n  warmup_steps: 1\n  warmup_ratio: 0.1",
            "run.yaml:5: schedule.warmup_ratio: cannot be combined with schedule.warmup_steps; "
            "set one of the two to 0",
        ),
        (
            "schedule:\n  decay_ratio: 0.2",
            "run.yaml:4: schedule.decay_ratio: is only used by schedule.type wsd, not by cosine",
        ),
        (
            "data:\n  max_pixels: 100\n  min_pixels: 200",
            "run.yaml:5: data.min_pixels: 200 is above data.max_pixels, which is 100",
        ),
        (
            "lora:\n  enabled: true\nloss:\n  balance_weight: 0.1",
            "run.yaml:6: loss.balance_weight: has no effect while LoRA freezes the routers; "
            "remove it, or set lora.train_router: true",
        ),
        (
            "loss:\n  orthogonal_weight: 0.1\nlora:\n  enabled: true",
            "run.yaml:4: loss.orthogonal_weight: has no effect while LoRA freezes the routers; "
            "remove it, or set lora.train_router: true",
        ),
        (
            "optimizer:\n  router_learning_rate_ratio: 0.1\nlora:\n  enabled: true",
            "run.yaml:4: optimizer.router_learning_rate_ratio: has no effect while LoRA freezes the "
            "routers; remove it, or set lora.train_router: true",
        ),
        (
            "lora:\n  enabled: true\n  train_router: true\nloss:\n  bias_update_rate: 1e-3",
            "run.yaml:7: loss.bias_update_rate: is not available with LoRA: adapters do not store the "
            "correction bias, so it would be lost",
        ),
        (
            "model: {freeze: [router]}\nloss:\n  z_weight: 1e-3",
            "run.yaml:5: loss.z_weight: has no effect while model.freeze contains router; remove one of the two",
        ),
        (
            "checkpoint: {save_every: 50, keep_every: 70}",
            "run.yaml:3: checkpoint.keep_every: 70 keeps checkpoints that are never saved; it must be a multiple of "
            "checkpoint.save_every, which is 50",
        ),
        (
            # The default, by someone who wants adapters.
            "lora: {rank: 8}",
            "run.yaml:3: lora.rank: has no effect while lora.enabled is false; remove it, or set lora.enabled: true",
        ),
        (
            "model:\n  quantize: int4",
            "run.yaml:4: model.quantize: int4 needs adapters, since quantized weights cannot be trained; "
            "set lora.enabled: true, or model.quantize: none",
        ),
        (
            "loss:\n  orthogonal_mode: decoupled",
            "run.yaml:4: loss.orthogonal_mode: has no effect unless loss.orthogonal_weight is above 0",
        ),
        (
            "loss:\n  z_weight: -1",
            "run.yaml:4: loss.z_weight: must be a number of at least 0, got -1",
        ),
        (
            "model: {dtype: bfloat16}\nparallel: {device: cpu}",
            "run.yaml:3: model.dtype: bfloat16 is not available with parallel.device cpu, "
            "because Paddle has no bfloat16 CPU kernels; use float32 or auto",
        ),
    ],
)
def test_conflicts(write: Write, text: str, message: str) -> None:
    write("base.yaml", MINIMAL)
    assert problems(write("run.yaml", f"extends: base.yaml\n\n{text}\n")) == [message]


def test_no_eval_data(write: Write) -> None:
    assert load_config(write("run.yaml", MINIMAL), ["data.eval=null"]).data.eval == []


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("dpo: {beta: 0.2}", "dpo.beta", "set task: dpo"),
        ("data: {share_prompt: false}", "data.share_prompt", "set task: dpo"),
        ("task: dpo\ndata: {loss_on: each_turn}", "data.loss_on", "trains whole answers"),
        ("task: dpo\nloss: {normalization: token_balanced}", "loss.normalization", "mean over pairs"),
        (
            "task: dpo\ndpo: {simpo_gamma: 1}",
            "dpo.simpo_gamma",
            "only used by dpo.loss simpo, not by sigmoid",
        ),
        (
            "task: dpo\ndpo: {loss: ipo, label_smoothing: 0.1}",
            "dpo.label_smoothing",
            "sigmoid, robust or simpo, not by ipo",
        ),
        ("task: dpo\ndpo: {loss: simpo, reference: copy}", "dpo.reference", "must be auto or none"),
        ("task: dpo\ndpo: {reference: none}", "dpo.reference", "needs a reference model"),
        ("task: dpo\ndpo: {reference: cached}\ndata: {cache: false}", "dpo.reference", "data.cache"),
        (
            "task: dpo\ndpo: {reference: cached}\ndata: {streaming: true}\ntrain: {max_steps: 2}",
            "dpo.reference",
            "data.streaming",
        ),
    ],
)
def test_conflicts_of_preference_settings(write: Write, text: str, key: str, words: str) -> None:
    write("base.yaml", MINIMAL)
    (problem,) = problems(write("run.yaml", f"extends: base.yaml\n\n{text}\n"))
    assert f" {key}: " in problem and words in problem


def test_valid_preference_settings(write: Write) -> None:
    config = load_config(write("run.yaml", "task: dpo\n" + MINIMAL + "dpo: {loss: orpo, reference: none}\n"))
    assert (config.task, config.dpo.loss) == ("dpo", "orpo")
    smoothed = "task: dpo\n" + MINIMAL + "dpo: {loss: robust, label_smoothing: 0.1, reference: cached}\n"
    assert load_config(write("other.yaml", smoothed)).dpo.label_smoothing == 0.1


def test_router_losses_with_trained_routers(write: Write) -> None:
    losses = (
        "loss: {balance_weight: 0.1, z_weight: 0.1, orthogonal_weight: 0.1, orthogonal_mode: decoupled%s}\n"
    )
    lora = "lora: {enabled: true, train_router: true}\n"
    full = load_config(write("full.yaml", MINIMAL + losses % ", bias_update_rate: 1e-3"))
    assert full.loss.bias_update_rate == 1e-3
    assert load_config(write("lora.yaml", MINIMAL + lora + losses % "")).loss.balance_weight == 0.1


def test_a_conflict_names_the_location_of_its_first_key(write: Write) -> None:
    path = write("run.yaml", MINIMAL + "lora: {enabled: true, rank: 16}\n")
    assert problems(path, "lora.enabled=false") == [
        "run.yaml:4: lora.rank: has no effect while lora.enabled is false; "
        "remove it, or set lora.enabled: true"
    ]
