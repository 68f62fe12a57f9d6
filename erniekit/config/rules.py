"""Rules between settings.

Each rule yields its violations with the keys involved, so that `erniekit.config.load` can report the line of each.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from erniekit.config import choices
from erniekit.config.schema import Schema
from erniekit.config.section import Section

CONFLICT = "conflict"
"""The pydantic error type of broken rules; `ctx["conflicts"]` is a list of Conflict."""


_ROUTER_LOSSES = ("balance_weight", "z_weight", "orthogonal_weight", "bias_update_rate")
_ROUTER_RATIO = "optimizer.router_learning_rate_ratio"


class Conflict(NamedTuple):
    """A broken rule: the dotted keys, the one to change first, and a sentence about that key."""

    keys: tuple[str, ...]
    message: str


def find_conflicts(config: Schema) -> Iterator[Conflict]:
    """Every broken rule."""
    for rule in _RULES:
        yield from rule(config)


def _any_of(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _default(section: Section, key: str) -> object:
    return type(section).model_fields[key].default


def _lora_is_off(config: Schema) -> Iterator[Conflict]:
    if config.lora.enabled:
        return
    # A saved, fully resolved configuration contains every key: with lora.enabled, a default is no conflict.
    stated = config.lora.model_fields_set
    for name in type(config.lora).model_fields:
        is_default = getattr(config.lora, name) == _default(config.lora, name)
        if not is_default or (name in stated and "enabled" not in stated):
            yield Conflict(
                (f"lora.{name}", "lora.enabled"),
                "has no effect while lora.enabled is false; remove it, or set lora.enabled: true",
            )


def _keep_every_is_saved(config: Schema) -> Iterator[Conflict]:
    every, keep = config.checkpoint.save_every, config.checkpoint.keep_every
    if keep is not None and (every is None or keep % every):
        yield Conflict(
            ("checkpoint.keep_every", "checkpoint.save_every"),
            f"{keep} keeps checkpoints that are never saved; it must be a multiple of checkpoint.save_every, which is "
            f"{'null' if every is None else every}",
        )


def _quantized_weights_are_frozen(config: Schema) -> Iterator[Conflict]:
    if config.model.quantize != "none" and not config.lora.enabled:
        yield Conflict(
            ("model.quantize", "lora.enabled"),
            f"{config.model.quantize} needs adapters, since quantized weights cannot be trained; set lora.enabled: "
            "true, or model.quantize: none",
        )


def _eval_has_data(config: Schema) -> Iterator[Conflict]:
    if config.train.eval_every is not None and not config.data.eval:
        yield Conflict(("train.eval_every", "data.eval"), "needs data.eval, which is empty")


def _answers_have_data(config: Schema) -> Iterator[Conflict]:
    if config.eval.samples and not config.data.eval:
        yield Conflict(("eval.samples", "data.eval"), "needs data.eval, which is empty")


def _best_is_known(config: Schema) -> Iterator[Conflict]:
    name = config.eval.best_metric
    if name is None:
        return
    if name not in choices.BEST_METRICS:
        near = difflib.get_close_matches(name, choices.BEST_METRICS, n=1)
        meant = f"; did you mean `{near[0]}`?" if near else ""
        yield Conflict(
            ("eval.best_metric",), f"must be one of {', '.join(choices.BEST_METRICS)}, got {name}{meant}"
        )
        return
    if config.train.eval_every is None:
        yield Conflict(
            ("eval.best_metric", "train.eval_every"),
            "needs train.eval_every; without it the run is evaluated only at the end",
        )
    if name in choices.PAIR_METRICS and config.task != "dpo":
        yield Conflict(("eval.best_metric", "task"), f"{name} is only available with task dpo; use eval/loss")
    if name in choices.ANSWER_METRICS and not config.eval.samples:
        yield Conflict(
            ("eval.best_metric", "eval.samples"),
            f"{name} needs generated answers; set eval.samples, for example to 50",
        )


def _patience_has_a_measure(config: Schema) -> Iterator[Conflict]:
    settings = config.eval
    if settings.patience is not None and settings.best_metric is None:
        yield Conflict(
            ("eval.patience", "eval.best_metric"),
            "needs eval.best_metric, for example eval/loss",
        )
    if settings.min_delta and settings.patience is None:
        yield Conflict(("eval.min_delta", "eval.patience"), "has no effect unless eval.patience is set")


def _profiled_steps_in_order(config: Schema) -> Iterator[Conflict]:
    steps = config.train.profile_steps
    if steps is not None and steps[0] > steps[1]:
        yield Conflict(
            ("train.profile_steps",), f"must be the first and the last step; {steps[0]} is after {steps[1]}"
        )


def _one_warmup(config: Schema) -> Iterator[Conflict]:
    if config.schedule.warmup_steps and config.schedule.warmup_ratio:
        yield Conflict(
            ("schedule.warmup_ratio", "schedule.warmup_steps"),
            "cannot be combined with schedule.warmup_steps; set one of the two to 0",
        )


def _warmup_fits(config: Schema) -> Iterator[Conflict]:
    steps, warmup = config.train.max_steps, config.schedule.warmup_steps
    if steps is not None and warmup > steps:
        yield Conflict(
            ("schedule.warmup_steps", "train.max_steps"),
            f"{warmup} warm-up steps are more than train.max_steps, which is {steps}; "
            f"set it to {tenth_of(steps)}, or to 0 with schedule.warmup_ratio: 0.1",
        )


def tenth_of(steps: int) -> int:
    """A usual number of warm-up steps in a run of `steps` steps: a tenth, at least 1."""
    return max(1, steps // 10)


def _learning_rate_falls(config: Schema) -> Iterator[Conflict]:
    low, high = config.schedule.min_learning_rate, config.optimizer.learning_rate
    if low > high:
        yield Conflict(
            ("schedule.min_learning_rate", "optimizer.learning_rate"),
            f"{low:g} is above optimizer.learning_rate, which is {high:g}",
        )


def _decay_is_used(config: Schema) -> Iterator[Conflict]:
    schedule = config.schedule
    if schedule.type != "wsd" and schedule.decay_ratio != _default(schedule, "decay_ratio"):
        yield Conflict(
            ("schedule.decay_ratio", "schedule.type"),
            f"is only used by schedule.type wsd, not by {schedule.type}",
        )


def _pixels_in_order(config: Schema) -> Iterator[Conflict]:
    low, high = config.data.min_pixels, config.data.max_pixels
    if low is not None and high is not None and low > high:
        yield Conflict(
            ("data.min_pixels", "data.max_pixels"), f"{low} is above data.max_pixels, which is {high}"
        )


def _frames_in_order(config: Schema) -> Iterator[Conflict]:
    data = config.data
    for low, high in (("video_min_frames", "video_max_frames"), ("video_min_pixels", "video_max_pixels")):
        least, most = getattr(data, low), getattr(data, high)
        if least is not None and most is not None and least > most:
            yield Conflict((f"data.{low}", f"data.{high}"), f"{least} is above data.{high}, which is {most}")


def _private_urls_are_urls(config: Schema) -> Iterator[Conflict]:
    if config.data.allow_private_urls and not config.data.allow_urls:
        yield Conflict(
            ("data.allow_private_urls", "data.allow_urls"), "is only used with data.allow_urls: true"
        )


def _fetched_layers_are_recomputed(config: Schema) -> Iterator[Conflict]:
    if config.parallel.shard == "parameters" and config.train.recompute == "none":
        yield Conflict(
            ("parallel.shard", "train.recompute"),
            "parameters needs train.recompute: layers; otherwise the backward pass keeps the weights of every layer",
        )


def _mix_is_used(config: Schema) -> Iterator[Conflict]:
    data = config.data
    if data.mix != "weighted" and any(source.weight != 1 for source in data.train):
        yield Conflict(
            ("data.train", "data.mix"),
            f"weights have no effect with data.mix {data.mix}; set data.mix: weighted",
        )
    if data.stop != "first_exhausted" and data.mix != "interleave":
        yield Conflict(("data.stop", "data.mix"), "has no effect unless data.mix is interleave")
    if data.stop != "first_exhausted" and data.streaming:
        yield Conflict(
            ("data.stop", "data.streaming"),
            "has no effect with data.streaming, where an exhausted source starts again",
        )


def _stream_has_an_end(config: Schema) -> Iterator[Conflict]:
    data = config.data
    if data.streaming and config.train.max_steps is None:
        yield Conflict(
            ("data.streaming", "train.max_steps"),
            "needs train.max_steps, because the length of a stream is unknown",
        )
    if not data.streaming and data.buffer != _default(data, "buffer"):
        yield Conflict(("data.buffer", "data.streaming"), "has no effect unless data.streaming is true")


def _dtype_has_kernels(config: Schema) -> Iterator[Conflict]:
    if config.parallel.device == "cpu" and config.model.dtype == "bfloat16":
        yield Conflict(
            ("model.dtype", "parallel.device"),
            "bfloat16 is not available with parallel.device cpu, because Paddle has no bfloat16 CPU kernels; "
            "use float32 or auto",
        )


def router_settings(config: Schema) -> list[str]:
    """The keys in use that only affect trained routers."""
    used = {f"loss.{name}": getattr(config.loss, name) for name in _ROUTER_LOSSES}
    ratio = config.optimizer.router_learning_rate_ratio
    return [key for key, value in used.items() if value] + [_ROUTER_RATIO] * (ratio != 1)


def _routers_are_trained(config: Schema) -> Iterator[Conflict]:
    lora = config.lora
    for key in router_settings(config):
        if key == "loss.bias_update_rate" and lora.enabled:
            yield Conflict(
                (key, "lora.enabled"),
                "is not available with LoRA: adapters do not store the correction bias, so it would be lost",
            )
        elif lora.enabled and not lora.train_router:
            yield Conflict(
                (key, "lora.train_router"),
                "has no effect while LoRA freezes the routers; remove it, or set lora.train_router: true",
            )
        elif "router" in config.model.freeze:
            yield Conflict(
                (key, "model.freeze"),
                "has no effect while model.freeze contains router; remove one of the two",
            )


def _orthogonal_mode_is_used(config: Schema) -> Iterator[Conflict]:
    loss = config.loss
    if loss.orthogonal_mode != _default(loss, "orthogonal_mode") and not loss.orthogonal_weight:
        yield Conflict(
            ("loss.orthogonal_mode", "loss.orthogonal_weight"),
            "has no effect unless loss.orthogonal_weight is above 0",
        )


def _dpo_is_on(config: Schema) -> Iterator[Conflict]:
    if config.task == "dpo":
        return
    for name in type(config.dpo).model_fields:
        if getattr(config.dpo, name) != _default(config.dpo, name):
            yield Conflict(
                (f"dpo.{name}", "task"), f"has no effect with task {config.task}; remove it, or set task: dpo"
            )
    if not config.data.share_prompt:
        yield Conflict(
            ("data.share_prompt", "task"),
            f"has no effect with task {config.task}; remove it, or set task: dpo",
        )


def _dpo_fits(config: Schema) -> Iterator[Conflict]:
    if config.task != "dpo":
        return
    if config.data.loss_on == "each_turn":
        yield Conflict(
            ("data.loss_on", "task"),
            "cannot be each_turn with task dpo, which trains whole answers; use all or last_turn",
        )
    if config.loss.normalization != _default(config.loss, "normalization"):
        yield Conflict(
            ("loss.normalization", "task"),
            "has no effect with task dpo, where the loss is the mean over pairs",
        )


def _dpo_constants_are_used(config: Schema) -> Iterator[Conflict]:
    dpo = config.dpo
    if config.task != "dpo":
        return
    for key, losses in (
        ("label_smoothing", choices.LABEL_SMOOTHING),
        ("simpo_gamma", ("simpo",)),
        ("dpop_lambda", ("dpop",)),
    ):
        if getattr(dpo, key) != _default(dpo, key) and dpo.loss not in losses:
            yield Conflict(
                (f"dpo.{key}", "dpo.loss"),
                f"is only used by dpo.loss {_any_of(losses)}, not by {dpo.loss}",
            )


def _dpo_reference_fits(config: Schema) -> Iterator[Conflict]:
    dpo, data = config.dpo, config.data
    if config.task != "dpo":
        return
    if dpo.loss in choices.REFERENCE_FREE:
        if dpo.reference not in ("auto", "none"):
            yield Conflict(
                ("dpo.reference", "dpo.loss"),
                f"must be auto or none with dpo.loss {dpo.loss}, which uses no reference model",
            )
    elif dpo.reference == "none":
        yield Conflict(
            ("dpo.reference", "dpo.loss"),
            f"cannot be none with dpo.loss {dpo.loss}, which needs a reference model; "
            f"only {' and '.join(choices.REFERENCE_FREE)} do not",
        )
    elif config.lora.path is not None:
        yield Conflict(
            ("lora.path", "dpo.loss"),
            f"cannot be set with dpo.loss {dpo.loss}: the reference model is model.path without adapters, not the "
            "model that training starts from; merge the adapter (`erniekit export`) and set model.path to the result",
        )
    if dpo.reference == "cached" and data.streaming:
        yield Conflict(
            ("dpo.reference", "data.streaming"),
            "cannot be cached with data.streaming, which stores nothing on disk",
        )
    if dpo.reference == "cached" and not data.streaming and not data.cache:
        yield Conflict(
            ("dpo.reference", "data.cache"),
            "cannot be cached with data.cache: false, because it is stored in the cache",
        )


_RULES: tuple[Callable[[Schema], Iterator[Conflict]], ...] = (
    _keep_every_is_saved,
    _lora_is_off,
    _quantized_weights_are_frozen,
    _eval_has_data,
    _answers_have_data,
    _best_is_known,
    _patience_has_a_measure,
    _profiled_steps_in_order,
    _one_warmup,
    _warmup_fits,
    _learning_rate_falls,
    _decay_is_used,
    _pixels_in_order,
    _frames_in_order,
    _private_urls_are_urls,
    _fetched_layers_are_recomputed,
    _mix_is_used,
    _stream_has_an_end,
    _dtype_has_kernels,
    _routers_are_trained,
    _orthogonal_mode_is_used,
    _dpo_is_on,
    _dpo_fits,
    _dpo_constants_are_used,
    _dpo_reference_fits,
)
