from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from erniekit.data.template import resolve_template

PLAIN: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Which\ndigit? "},
    {"role": "assistant", "content": "7\n"},
    {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "now?"}]},
]
BEGIN, END, NO_THOUGHT = "<|begin_of_sentence|>", "<|end_of_sentence|>", "<think>\n\n</think>\n\n"
PICTURE = "<|IMAGE_START|><|image@placeholder|><|IMAGE_END|>"
VIDEO = "<|VIDEO_START|><|video@placeholder|><|VIDEO_END|>"
Render = Callable[..., str]


@pytest.fixture(params=["tiny-moe", "tiny-vl"])
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def renderer(directory: Path) -> Render:
    tokenizer = AutoTokenizer.from_pretrained(directory)

    def render(messages: list[dict[str, Any]], **options: Any) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))

    return render


def test_text(tiny: Callable[[str], Path]) -> None:
    render = renderer(tiny("tiny-moe"))
    whole = f"{BEGIN}Be brief.\nUser:  Which\ndigit? \nAssistant: 7\n{END}User: And now?\n"
    assert render(PLAIN, add_generation_prompt=False) == whole
    assert render(PLAIN, add_generation_prompt=True) == whole + "Assistant: "


def test_vl_without_pictures(tiny: Callable[[str], Path]) -> None:
    render = renderer(tiny("tiny-vl"))
    whole = f"{BEGIN}Be brief.\nUser:  Which\ndigit? \nAssistant: 7\n{END}User: And now?"
    assert render(PLAIN, add_generation_prompt=False) == whole
    assert render(PLAIN, add_generation_prompt=True) == f"{whole}\nAssistant: {NO_THOUGHT}"
    assert render(PLAIN, add_generation_prompt=True, enable_thinking=True) == f"{whole}\nAssistant: "


def test_vl_counts_pictures_and_videos_over_the_whole_chat(tiny: Callable[[str], Path]) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "A?"}, {"type": "video"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "B."}]},
        {
            "role": "user",
            "content": [{"type": "image_url"}, {"type": "image"}, {"type": "text", "text": "C?"}],
        },
    ]
    assert renderer(tiny("tiny-vl"))(messages, add_generation_prompt=False) == (
        f"{BEGIN}User: Picture 1:{PICTURE}A?Video 1:{VIDEO}\nAssistant: B.{END}"
        f"User: Picture 2:{PICTURE}Picture 3:{PICTURE}C?"
    )


def test_unknown_roles_are_refused(shape: str, tiny: Callable[[str], Path]) -> None:
    with pytest.raises(Exception, match="not tool"):
        renderer(tiny(shape))([{"role": "tool", "content": "x"}])


def test_training_finds_its_template_by_them(shape: str, tiny: Callable[[str], Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny(shape))
    vision = shape == "tiny-vl"
    template = resolve_template("auto", tokenizer, is_vl=vision)
    assert (template.name, template.default_system) == ("ernie_vl" if vision else "ernie", "")
