"""The keys of Baidu's ERNIEKit 1.x for data: sources, encoding, images and videos."""

from __future__ import annotations

from typing import Any

from erniekit.config.others.table import (
    Dropped,
    Key,
    NoEquivalent,
    NotNeeded,
    Rule,
    no_equivalent,
    not_needed,
)
from erniekit.config.others.values import (
    boolean,
    choice,
    number,
    numbers,
    positive,
    sources,
    when_true,
    whole,
    words,
)

_PACKED = "documents are always packed, without padding, and do not attend to each other"
_FORMATS = {
    "erniekit": "erniekit",
    "alpaca": "alpaca",
    "chatml": "messages",
    "messages": "messages",
    "sharegpt": "sharegpt",
}


def _formats(value: Any) -> list[Any]:
    return [choice(_FORMATS)(item) for item in words(value)]


DATA_RULES: dict[str, Rule] = {
    "train_dataset_path": Key("data.train", sources, role="paths"),
    "train_dataset_prob": Key("data.train", numbers, role="weights"),
    "train_dataset_type": Key("data.format", _formats, role="formats"),
    "text_dataset_path": Key("data.train", sources, role="text_paths"),
    "text_dataset_prob": Key("data.train", numbers, role="text_weights"),
    "modality_ratio": Key(
        "data.train",
        numbers,
        role="modality_ratio",
        hint="Give the sources of chats with media and of text a weight, and set data.mix: weighted.",
    ),
    "eval_dataset_path": Key("data.eval", sources, role="eval_paths"),
    "mix_strategy": Key(
        "data.mix",
        choice(
            {
                "random": "weighted",
                "concat": "concat",
                "interleave_under": "first_exhausted",
                "interleave_over": "all_exhausted",
            }
        ),
        role="mix",
    ),
    "max_seq_len": Key("data.max_length", whole),
    "random_shuffle": Key("data.shuffle", boolean),
    "split_multi_turn": Key("data.loss_on", when_true("each_turn")),
    "truncation_strategy": Key(
        "data.on_long",
        choice(
            {
                **{"delete": "drop", "left": "trim_history"},
                "right": NoEquivalent(
                    "answers are never cut; data.on_long removes old exchanges, or the sample"
                ),
            }
        ),
    ),
    "chat_template": Key(
        "data.template",
        choice({"ernie": "ernie", "ernie_vl": "ernie_vl", "ernie_vl_thinking": "ernie_vl_thinking"}),
    ),
    "dataloader_num_workers": Key("data.workers", whole),
    **{
        f"{name}_pixels": Key(f"data.{name}_pixels", positive)
        for name in ("min", "max", "video_min", "video_max")
    },
    "video_fps": Key("data.video_fps", number),
    "video_min_frames": Key("data.video_min_frames", positive),
    "video_max_frames": Key("data.video_max_frames", positive),
    "video_frames_sample": Key(
        "data.video_sampling", choice({"leading": "leading", "middle": "middle", "rand": "random"})
    ),
    "render_timestamp": Key("data.video_timestamps", boolean),
    **not_needed("eval_dataset_prob", "all evaluation samples are evaluated once"),
    **not_needed(
        "eval_dataset_type text_dataset_type dataset_name", "the format is detected from the keys of samples"
    ),
    **not_needed(
        "dataset_type", "samples are encoded once and kept (data.cache), or streamed (data.streaming)"
    ),
    **not_needed("num_samples_each_epoch", "an epoch is one pass over the data"),
    **not_needed("max_prompt_len num_comparisons", "ERNIEKit does not use it"),
    "packing": Dropped(NotNeeded(_PACKED), role="packing", read=boolean),
    "in_tokens_batching": Dropped(NotNeeded(_PACKED), role="packing", read=boolean),
    **not_needed(
        "pad_to_max_seqlen padding_free greedy_intokens buffer_size binpacking packing_interval truncate_packing "
        "one_sample_in_one_seq pseudo_sampling_prob packed_idx_cache_dir make_offline_data",
        _PACKED,
    ),
    **not_needed(
        "use_cls use_template template template_backend encode_one_turn use_pic_id add_sys_token chat_template_path",
        "the chat template of the model is applied exactly (data.template)",
    ),
    **not_needed(
        "sft_replace_ids sft_shift_by_one sft_image_rescale sft_image_normalize image_dtype serialize_output "
        "im_prefix_length prompt_dir trigger_data_prob drop_history_with_k same_data example_from_same_task_prob "
        "min_shot max_shot factor drop_untrainble_sample prefetch_factor distributed_dataloader modality_interleave "
        "balanced_image_preprocess image_preprocess_save",
        "a detail of ERNIEKit's data reader; `erniekit data preview` shows how samples are read here",
    ),
    **not_needed(
        "variable_resolution", "images keep their resolution, between data.min_pixels and data.max_pixels"
    ),
    **no_equivalent(
        "offline_dataset_path", "name the original files in data.train; encoded samples are cached"
    ),
    **no_equivalent("target_frames", "set data.video_min_frames and data.video_max_frames to it", -1),
    **no_equivalent(
        "adaptive_max_imgtoken_option adaptive_max_imgtoken_rate",
        "data.max_pixels is one limit for all images",
    ),
    **no_equivalent(
        "new_special_tokens_path", "add the tokens to the tokenizer, and set model.resize_vocab: true"
    ),
    **no_equivalent(
        "custom_register_path", "no code is loaded; convert the data to a format of `erniekit data check`"
    ),
}
