"""Small checkpoints, images and data files, made on the spot, for the tests of erniekit.data."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from erniekit.data.chat.conversation import (
    Conversation,
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    VideoPart,
)
from erniekit.vl_checkpoint import CLIP_MEAN, CLIP_STD

# Present where the developers work, absent in a user's clone.
SHARED = Path(__file__).resolve().parents[4] / "shared"

TEXT = """The capital of France is Paris. Paris is a city. The answer is Paris, the answer is seven.
User: what is in the picture? Assistant: a small cat and two green apples on a table.
Assistant: Paris Assistant: Paris Assistant: seven Assistant: seven
One plus one is two, two plus two is four, ten minus three is seven. Digits 0 1 2 3 4 5 6 7 8 9.
今天天气很好 图片里有一只猫和两个苹果。北京是中国的首都。
"""
SPECIAL = [
    "<unk>", "<s>", "</s>", "<|begin_of_sentence|>", "<|end_of_sentence|>", "<|image@placeholder|>",
    "<|IMAGE_PLACEHOLDER|>", "<|IMAGE_START|>", "<|IMAGE_END|>", "<|VIDEO_START|>", "<|VIDEO_END|>",
    "<think>", "</think>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>",
]  # fmt: skip
_FRAME_MACROS = (
    "{%- macro plain(content) -%}{%- if content is string -%}{{ content }}{%- elif content is not none -%}"
    "{%- for c in content -%}{{ c.text }}{%- endfor -%}{%- endif -%}{%- endmacro -%}"
    "{%- macro calls(m) -%}{%- for c in m.tool_calls or [] -%}{{ '<tool_call>\\n{\"name\": ' + c.function.name | tojson"
    " + ', \"arguments\": ' + c.function.arguments + '}\\n</tool_call>\\n' }}{%- endfor -%}{%- endmacro -%}"
)
_FRAME_OPENING = (
    "{{ '<|begin_of_sentence|>' }}"
    "{%- if tools -%}{{ '\\n<tool_list>\\n' + tools | tojson + '\\n</tool_list>\\n' }}{%- endif -%}"
)
TEXT_TEMPLATE = (
    _FRAME_MACROS + _FRAME_OPENING + "{%- for m in messages -%}"
    "{%- if m.role == 'user' -%}{{ 'User: ' + plain(m.content) + '\\n' }}"
    "{%- elif m.role == 'tool' -%}"
    "{%- if messages[loop.index0 - 1].role != 'tool' -%}{{ 'User: ' }}{%- endif -%}"
    "{{ '<tool_output>\\n' + plain(m.content) + '\\n</tool_output>\\n' }}"
    "{%- if loop.last or messages[loop.index].role != 'tool' -%}{{ '\\n' }}{%- endif -%}"
    "{%- elif m.role == 'assistant' -%}"
    "{{ 'Assistant: ' + plain(m.content) + calls(m) + '<|end_of_sentence|>' }}"
    "{%- else -%}{{ m.content + '\\n' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'Assistant: ' }}{%- endif -%}"
)
VL_TEMPLATE = (
    _FRAME_MACROS + _FRAME_OPENING + "{%- set n = namespace(i=0, v=0) -%}{%- for m in messages -%}"
    "{%- if m.role in ['user', 'tool'] -%}"
    "{%- if m.role == 'user' or messages[loop.index0 - 1].role != 'tool' -%}{{ 'User: ' }}{%- endif -%}"
    "{%- if m.role == 'tool' -%}{{ '<tool_output>\\n' }}{%- endif -%}"
    "{%- if m.content is string -%}{{ m.content }}{%- else -%}"
    "{%- for c in m.content -%}{%- if c.type == 'text' -%}{{ c.text }}"
    "{%- elif c.type == 'video' -%}{%- set n.v = n.v + 1 -%}"
    "Video {{ n.v }}:<|VIDEO_START|><|IMAGE_PLACEHOLDER|><|VIDEO_END|>"
    "{%- else -%}{%- set n.i = n.i + 1 -%}"
    "Picture {{ n.i }}:<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>{%- endif -%}{%- endfor -%}"
    "{%- endif -%}"
    "{%- if m.role == 'tool' -%}{{ '\\n</tool_output>\\n' }}{%- endif -%}"
    "{%- elif m.role == 'assistant' -%}"
    "{{ '\\nAssistant: ' + plain(m.content) + calls(m) + '<|end_of_sentence|>' }}"
    "{%- else -%}{{ m.content + '\\n' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '\\nAssistant: <think>\\n\\n</think>\\n\\n' }}{%- endif -%}"
)
# In both thinking templates the answers after the last question keep their reasoning: the calls of a tool loop.
_LAST_USER = (
    "{%- set last = namespace(user=-1) -%}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}"
    "{%- endfor -%}"
)
THINKING_TEMPLATE = _LAST_USER + VL_TEMPLATE.replace(
    "Assistant: <think>\\n\\n</think>\\n\\n", "Assistant: \\n<think>\\n"
).replace(
    "{{ '\\nAssistant: ' + plain(m.content)",
    "{{ '\\nAssistant: ' }}{%- if loop.index0 > last.user -%}"
    "{{ '\\n<think>\\n' + m.reasoning_content | default('') + '\\n</think>\\n\\n' }}{%- endif -%}"
    "{{ plain(m.content)",
)
# As ERNIE-4.5-21B-A3B-Thinking has it.
TEXT_THINKING_TEMPLATE = (
    _LAST_USER + "{{ '<|im_start|>system\\n' }}"
    "{%- if messages[0].role == 'system' -%}"
    "{{ '<system_setting>\\n' + messages[0].content + '\\n</system_setting>\\n\\n' }}{%- endif -%}"
    "{{ '<global_setting>\\nthink_mode=True\\n</global_setting>' }}"
    "{%- if tools -%}{{ '\\n\\n<tool_list>\\n' + tools | tojson + '\\n</tool_list>' }}{%- endif -%}"
    "{{ '<|im_end|>\\n\\n' }}"
    "{%- for m in messages -%}"
    "{%- if m.role == 'user' -%}{{ '<|im_start|>user\\n' + m.content + '<|im_end|>\\n\\n' }}"
    "{%- elif m.role == 'tool' -%}"
    "{{ '\\n' if messages[loop.index0 - 1].role == 'tool' else '<|im_start|>user\\n' }}"
    "{{ '<tool_response>\\n' + m.content + '\\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index].role != 'tool' -%}{{ '<|im_end|>\\n\\n' }}{%- endif -%}"
    "{%- elif m.role == 'assistant' -%}{{ '<|im_start|>assistant\\n' }}"
    "{%- if loop.index0 > last.user -%}"
    "{{ '<think>\\n' + m.reasoning_content | default('') + '\\n</think>\\n' }}{%- endif -%}"
    "{%- if m.content -%}{{ '<response>\\n' + m.content + '\\n</response>\\n' }}{%- endif -%}"
    "{%- for c in m.tool_calls or [] -%}{{ '\\n<tool_call>\\n{\"name\": ' + c.function.name | tojson"
    " + ', \"arguments\": ' + c.function.arguments + '}\\n</tool_call>\\n' }}{%- endfor -%}"
    "{{ '<|im_end|>\\n\\n' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n<think>\\n' }}{%- endif -%}"
)
CHAT_TEMPLATES = {
    "text": TEXT_TEMPLATE,
    "text_thinking": TEXT_THINKING_TEMPLATE,
    "vl": VL_TEMPLATE,
    "thinking": THINKING_TEMPLATE,
}


def make_tokenizer(chat_template: str | None) -> PreTrainedTokenizerFast:
    """A BPE tokenizer of ERNIE's kind, in which the space before a word merges with it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=604, special_tokens=SPECIAL + byte_tokens, show_progress=False)
    tokenizer.train_from_iterator(TEXT.split("\n"), trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in SPECIAL]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def make_checkpoint(
    directory: Path, kind: str, chat_template: str | None = None, eos_token_id: int | list[int] = 2
) -> Path:
    """A checkpoint directory without weights. kind: "text", "text_thinking", "vl" or "thinking"."""
    tokenizer = make_tokenizer(CHAT_TEMPLATES[kind] if chat_template is None else chat_template or None)
    tokenizer.save_pretrained(directory)
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(SPECIAL), strict=True))
    config: dict[str, Any] = {"model_type": "ernie4_5"}
    if kind not in ("text", "text_thinking"):
        config = {
            "model_type": "ernie4_5_moe_vl",
            "im_patch_id": ids["<|IMAGE_PLACEHOLDER|>"],
            "image_start_token_id": ids["<|IMAGE_START|>"],
            "image_end_token_id": ids["<|IMAGE_END|>"],
            "video_start_token_id": ids["<|VIDEO_START|>"],
            "video_end_token_id": ids["<|VIDEO_END|>"],
        }
        write_json(directory / "preprocessor_config.json", PROCESSOR)
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", {"eos_token_id": eos_token_id})
    return directory


PROCESSOR: dict[str, Any] = {
    "image_mean": [*CLIP_MEAN],
    "image_std": [*CLIP_STD],
    "min_pixels": 3136,
    "max_pixels": 1003520,
    "patch_size": 14,
    "merge_size": 2,
}


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def write_lines(path: Path, records: Sequence[Any]) -> Path:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def noise(height: int, width: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """An image of smooth noise."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR).convert(mode)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def data_uri(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(encoded(image)).decode()


def chat(
    *turns: tuple[str, Any] | tuple[str, Any, bool],
    sample_id: str = "f:1",
    tools: Sequence[dict[str, Any]] = (),
) -> Conversation:
    """A conversation of (role, content[, trained]); content: text, image, part, or a list of such."""
    messages = []
    for role, content, *trained in turns:
        items = content if isinstance(content, list) else [content]
        parts: tuple[Part, ...] = tuple(_part(item) for item in items)
        carries_loss = trained[0] if trained else role in ("assistant", "text")
        messages.append(Message(role, parts, carries_loss))  # type: ignore[arg-type]
    return Conversation(tuple(messages), sample_id, tuple(tools))


def _part(item: str | bytes | Part) -> Part:
    if isinstance(item, bytes):
        return ImagePart(item)
    return TextPart(item) if isinstance(item, str) else item


def video(height: int, width: int, frames: int) -> VideoPart:
    """A video of noise, given as its frames."""
    return VideoPart(tuple(encoded(noise(height, width, seed)) for seed in range(frames)))


def openai(conversation: Conversation) -> list[dict[str, Any]]:
    """The messages of a conversation as apply_chat_template takes them."""
    return [_openai_message(message) for message in conversation.messages]


def _openai_message(message: Message) -> dict[str, Any]:
    out: dict[str, Any] = {"role": message.role}
    content: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, ReasoningPart):
            out["reasoning_content"] = part.text
        elif isinstance(part, ToolCallPart):
            function = {"name": part.name, "arguments": part.arguments}
            out.setdefault("tool_calls", []).append({"type": "function", "function": function})
        elif isinstance(part, TextPart):
            content.append({"type": "text", "text": part.text})
        else:
            content.append({"type": "image" if isinstance(part, ImagePart) else "video"})
    if all(item["type"] == "text" for item in content) and len(content) < 2:
        out["content"] = content[0]["text"] if content else None
    else:
        out["content"] = content
    return out


def qa(question: Any, answer: str = "seven", **extra: Any) -> dict[str, Any]:
    """A record of format messages with one question."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **extra}
