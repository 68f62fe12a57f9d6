"""Keys in data of other trainers: synonyms, harmless keys, and rejected keys.

A key of a record, message or part is read by its format, ignored because it is harmless, or refused because it would
change what is trained in a way that is not supported. All other keys are reported. Sources: the documentation of
OpenAI, axolotl, ms-swift, LLaMA-Factory and TRL.
"""

from __future__ import annotations

from typing import Any, Literal

Level = Literal["record", "message", "part", "tool call"]

# Whether the tokens of a message or part are trained: true or false, 1 or 0.
LOSS_SWITCHES = (
    "loss",  # ms-swift
    "weight",  # OpenAI, axolotl
    "train",  # axolotl
    "training",
    "trainable",
    "loss_mask",
    "loss_weight",  # LLaMA-Factory
    "loss_scale",  # ms-swift
)
# The reasoning of an answer, next to its text.
REASONING = (
    *("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "think"),
    *("cot", "chain_of_thought"),
)

_COMMON = (
    *("id", "_id", "idx", "index", "uid", "uuid", "hash", "created", "created_at", "timestamp", "date"),
    *("source", "model", "meta", "metadata", "annotations"),
)
HARMLESS: dict[Level, frozenset[str]] = {
    "record": frozenset(
        (
            *_COMMON,
            *(
                "sample_id",
                "conversation_id",
                "prompt_id",
                "dataset",
                "dataset_name",
                "data_source",
                "subset",
            ),
            *("split", "url", "license", "language", "lang", "category", "topic", "tags", "channel"),
            *("num_turns", "num_tokens", "parallel_tool_calls", "__index_level_0__"),
        )
    ),
    "message": frozenset((*_COMMON, "status")),
    "part": frozenset((*_COMMON, "cache_control", "detail")),
    "tool call": frozenset((*_COMMON, "status")),
}

# For each key, the values without effect (in addition to null and empty ones), and the advice for other values.
Refused = dict[str, tuple[tuple[Any, ...], str]]
NO_AUDIO = "is not supported: the models take no audio"
_SAY_LOSS = 'set "loss": false in the messages that are not to be trained'
_NO_WEIGHTS = "is not read: samples have no weights; give a source a weight in data.train"
_UNTRAINED: Refused = {
    key: ((False,), f"is not read: {_SAY_LOSS}") for key in ("mask", "masked", "ignore", "ignore_loss")
}
REFUSED: dict[Level, Refused] = {
    "record": {
        **_UNTRAINED,
        "weight": ((1,), _NO_WEIGHTS),
        "sample_weight": ((1,), _NO_WEIGHTS),
        "loss_weight": ((1,), _NO_WEIGHTS),
        "loss_scale": ((1,), _NO_WEIGHTS),
        **{
            key: ((True,), f"is not read: {_SAY_LOSS}") for key in ("loss", "train", "trainable", "loss_mask")
        },
        **{
            key: ((False,), "is not read: only answers are trained")
            for key in ("train_on_inputs", "train_on_prompt")
        },
        "tool_calls": ((), "is not read in the record: put it into the assistant message with the calls"),
        "margin": ((0,), "preference pairs have no margins here"),
        "chat_template_kwargs": ((), "is not read: data.template decides how a chat is written"),
        "mm_processor_kwargs": (
            (),
            "is not read: set limits of pixels and frames in the part of an image or video",
        ),
        "rejected_tools": ((), "is not read: both answers of a pair have the same tools"),
        "rejected_audios": ((), NO_AUDIO),
        **{
            key: ((), "is for embedding models, which are not trained here")
            for key in ("positive_messages", "negative_messages")
        },
    },
    "message": {
        **_UNTRAINED,
        "train_detail": ((), "is not read: give the content as parts, each with its own loss switch"),
        "channel": (("final",), 'is not read: write reasoning under "reasoning_content"'),
        "prefix": ((False,), "is not read: an answer is trained from its beginning"),
        **{key: ((), "is not read: use parts in the message's content") for key in ("files", "attachments")},
        **{key: ((), NO_AUDIO) for key in ("audio", "audios")},
        **{key: ((), "is not read in a message: put it into the record") for key in ("tools", "functions")},
        **{
            key: ((), 'is not read: calls are "tool_calls" of an assistant message')
            for key in ("tool_call", "function_calls")
        },
        **{
            key: ((), 'is not read: the results of tools are messages of role "tool"')
            for key in ("tool_response", "tool_responses", "tool_result", "tool_results", "tool_outputs")
        },
    },
    "part": {
        **_UNTRAINED,
        **{
            key: ((), "is not read: use min_pixels and max_pixels")
            for key in ("resized_height", "resized_width", "total_pixels", "image_pixel_limit")
        },
        "frames_sample": ((), "is not read: data.video_sampling says which frames are picked"),
        "extracted_frame_indices": ((), "is not read: list the frames as images"),
    },
    "tool call": dict(_UNTRAINED),
}
