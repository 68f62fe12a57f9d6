"""Fields of a request that have no effect here, and fields that are refused.

A null value is the same as no field. Otherwise a field is supported (`ChatRequest`), or ignored whatever its value
(IGNORED), or accepted with values that change nothing (NEUTRAL), or refused with its name and value. Fields in none of
these lists are refused, too, so that no request is answered differently from what it asks for.
Sources: OpenAI's API reference; the chat requests of vLLM, FastDeploy and SGLang; llama.cpp's server.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Sequence
from typing import Any

from erniekit.display.text import clipped
from erniekit.errors import ErnieKitError


class RequestError(ErnieKitError):
    """An error response: HTTP `status`, and OpenAI's `param` and `code`. Values from a request are shortened.

    logged: details that only the server's log shows.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        logged: str = "",
    ) -> None:
        super().__init__(clipped(message, _MAX_MESSAGE))
        self.status, self.code, self.logged = status, code, logged
        self.param = None if param is None else clipped(param)


_MAX_MESSAGE = 1000  # characters
_MAX_SHOWN = 60  # characters of a value that an error shows

# Accounts, caches, traces and transport: the answer does not depend on them.
IGNORED = frozenset(
    (
        *("metadata", "prediction", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
        *("service_tier", "store", "user"),
        *("request_id", "rid", "session_id", "trace_context", "cache_salt", "extra_key", "cache_prompt"),
        *("keep_alive", "id_slot", "stream_interval", "max_streaming_response_tokens"),
        "spaces_between_special_tokens",
    )
)
_ONE_ANSWER = "a request has one answer"
_NOT_SUPPORTED = "is not supported"
_PENALTY = "is not supported: use repetition_penalty"
_SAMPLING = "is not supported: use temperature, top_p, top_k or min_p"
_FORMAT = "only text is supported: output formats are not enforced"
_ENDS = "is not supported: only end tokens and stop texts end an answer"
_CONTROL = "answers never contain control tokens"
_TEMPLATE = "the chat template always writes the prompt, up to the assistant's answer"
_WORDS = "is not supported: tokens cannot be banned or forced"
_RETURNS = "is not supported: an answer has text, reasoning, tool calls and usage"
_MEDIA = "is not supported: images and videos are read as in training"
# (fields, values that change nothing, the error for other values).
_NEUTRAL_RULES: tuple[tuple[tuple[str, ...], tuple[Any, ...], str], ...] = (
    # OpenAI
    (("audio",), (), "answers are text"),
    (("frequency_penalty", "presence_penalty"), (0,), _PENALTY),
    (("function_call",), ("auto", "none"), "is not supported: use tool_choice"),
    (("functions",), ([],), "is not supported: use tools"),
    (("logit_bias",), ({}, []), _NOT_SUPPORTED),
    (("logprobs",), (False, 0), _NOT_SUPPORTED),
    (("modalities",), (["text"],), "answers are text"),
    (("n", "best_of"), (1,), _ONE_ANSWER),
    (("parallel_tool_calls",), (True,), "the model decides how many tools it calls"),
    (("response_format",), ({"type": "text"}, {}), _FORMAT),
    (("top_logprobs",), (0,), _NOT_SUPPORTED),
    (("verbosity",), ("medium",), _NOT_SUPPORTED),
    (("web_search_options",), (), _NOT_SUPPORTED),
    # vLLM, FastDeploy, SGLang
    (("num_beams",), (1,), _ONE_ANSWER),
    (("use_beam_search", "early_stopping"), (False,), _ONE_ANSWER),
    (("length_penalty",), (1, 0), _ONE_ANSWER),
    (("min_tokens",), (0,), _ENDS),
    (("ignore_eos", "no_stop_trim", "include_stop_str_in_output"), (False,), _ENDS),
    (("stop_token_ids", "stop_regex"), ([], ""), _ENDS),
    (("skip_special_tokens",), (True,), _CONTROL),
    (("add_generation_prompt",), (True,), _TEMPLATE),
    (("continue_final_message", "echo", "add_special_tokens", "disable_chat_template"), (False,), _TEMPLATE),
    (("documents", "prompt_token_ids", "completion_token_ids", "input_ids"), ([],), _TEMPLATE),
    (("chat_template",), ("",), "is not supported: see serve --template"),
    (("truncate_prompt_tokens",), (), "is not supported: prompts are never cut"),
    (("bad_words", "bad_words_token_ids", "allowed_token_ids"), ([],), _WORDS),
    (("logits_processors", "custom_logit_processor"), ([], ""), _WORDS),
    (("logits_processors_args", "custom_params", "vllm_xargs"), ({},), _WORDS),
    (
        ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "regex", "ebnf"),
        ("", [], {}),
        _FORMAT,
    ),
    (("structured_outputs", "structural_tag", "json_schema", "grammar"), ("", {}), _FORMAT),
    (
        ("include_reasoning", "separate_reasoning", "stream_reasoning"),
        (True,),
        "reasoning is always separate from the text",
    ),
    (
        ("return_token_ids", "return_tokens_as_token_ids", "return_prompt_text", "return_hidden_states"),
        (False,),
        _RETURNS,
    ),
    (("return_prompt_token_ids", "return_meta_info", "return_cached_tokens_details"), (False,), _RETURNS),
    (("return_routed_experts", "collect_metrics", "include_draft_logprobs"), (False,), _RETURNS),
    (("temp_scaled_logprobs", "top_p_normalized_logprobs"), (False,), _RETURNS),
    (("include_logprobs_decode_token",), (True,), _RETURNS),
    (("prompt_logprobs",), (), _RETURNS),
    (("mm_processor_kwargs", "media_io_kwargs", "images_config"), ({},), _MEDIA),
    (("mm_hashes",), ([],), _MEDIA),
    (("use_audio_in_video",), (False,), _MEDIA),
    (("priority",), (0,), "requests are answered in order"),
    (("lora_path",), ("", []), "this server has one model, with its adapters"),
    (
        ("kv_transfer_params", "ec_transfer_params", "disaggregate_info", "session_params"),
        ({},),
        _NOT_SUPPORTED,
    ),
    (("watermark", "watermarking"), (False,), _NOT_SUPPORTED),
    # llama.cpp and its clients
    (("repeat_penalty",), (1,), _PENALTY),
    (("dry_multiplier", "no_repeat_ngram_size", "penalty_alpha"), (0,), _PENALTY),
    (("typical_p", "tfs_z", "tfs", "guidance_scale"), (1,), _SAMPLING),
    (("top_a", "xtc_probability", "mirostat", "mirostat_mode", "dynatemp_range"), (0,), _SAMPLING),
    (("smoothing_factor", "epsilon_cutoff", "eta_cutoff"), (0,), _SAMPLING),
)
NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    name: (values, message) for names, values, message in _NEUTRAL_RULES for name in names
}


def without_neutral(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields that have an effect. Raises RequestError for an unsupported value.

    prefix: put before the names in errors, for nested fields.
    """
    effective: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None or name in IGNORED:
            continue
        if name not in NEUTRAL:
            effective[name] = value
            continue
        values, message = NEUTRAL[name]
        if not any(_same(value, neutral) for neutral in values):
            raise refusal(prefix + name, message, value, values)
    return effective


def refusal(name: str, message: str, value: Any, neutral: Sequence[Any] = ()) -> RequestError:
    """The error for an unsupported value. neutral: values that are accepted."""
    shown = json.dumps(value, ensure_ascii=False)
    shown = shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + "..."
    instead = " or ".join(["leave it out", *(f"send {json.dumps(value)}" for value in neutral[:1])])
    return RequestError(f"{name}: {message}; {shown} was sent, {instead}", param=name)


def unknown_field(name: str, known: Collection[str]) -> RequestError:
    """The error for an unknown field. known: the names of the known ones."""
    # Names of megabytes are like none, but comparing them takes seconds and gigabytes.
    close = difflib.get_close_matches(name[:_MAX_SHOWN], sorted(known), n=1, cutoff=0.75)
    meant = f"; did you mean {close[0]}?" if close else ""
    return RequestError(f"{name}: this server does not know this field{meant}", param=name)


def _same(value: Any, neutral: Any) -> bool:
    """Whether the JSON values are equal: 1 is 1.0, but true is not 1."""
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)
