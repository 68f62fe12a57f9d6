"""Which chat template an export has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from erniekit.config.choices import ChatTemplateSource, CheckpointLayout
from erniekit.data.chat.families import TEMPLATES
from erniekit.data.chat.jinja import chat_template
from erniekit.data.encode.encoder import make_encoder
from erniekit.data.encode.tokenizer import load_tokenizer
from erniekit.errors import DataError
from erniekit.export.export import export_model
from tests.unit.export.conftest import Copy, change_json, write_state

# As a release of a text model writes chats: nothing of tools.
RELEASED = (
    "{{ '<|begin_of_sentence|>' }}{%- for m in messages -%}"
    "{%- if m.role == 'user' -%}{{ 'User: ' + m.content + '\\n' }}"
    "{%- elif m.role == 'assistant' -%}{{ 'Assistant: ' + m.content + '<|end_of_sentence|>' }}"
    "{%- elif m.role == 'system' -%}{{ m.content + '\\n' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt is not defined or add_generation_prompt -%}{{ 'Assistant: ' }}{%- endif -%}"
)
TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "count", "parameters": {}}}]


@pytest.fixture(params=["hub", "transformers"])
def layout(request: pytest.FixtureRequest) -> CheckpointLayout:
    return request.param  # type: ignore[no-any-return]


def trained(copy: Copy, family: str, program: str | None = None, template: str = "auto", **data: Any) -> Path:
    """A checkpoint whose base has `program` for a chat template, in tokenizer_config.json; None: the family's own."""
    directory = copy(family, "trained")
    if program is not None:
        (directory / "chat_template.jinja").unlink()
        change_json(directory / "tokenizer_config.json", chat_template=program or None)
    write_state(directory, str(directory), template=template, **data)
    return directory


def exported(
    source: Path, output: Path, layout: CheckpointLayout = "hub", template: ChatTemplateSource = "auto"
) -> list[str]:
    """Notes about the chat template."""
    notes = export_model(source, output, layout=layout, template=template).warnings
    return [note for note in notes if "chat template" in note]


def prompt(directory: Path, **options: Any) -> str:
    question = [{"role": "user", "content": "q"}]
    return str(
        load_tokenizer(directory).apply_chat_template(
            question, tokenize=False, add_generation_prompt=True, **options
        )
    )


@pytest.mark.parametrize("family", ["dense", "vl"])
def test_the_bases_is_kept_where_it_prompts_as_training_did(copy: Copy, family: str, tmp_path: Path) -> None:
    source = trained(copy, family)
    assert exported(source, tmp_path / "out") == []
    kept = (tmp_path / "out" / "chat_template.jinja").read_bytes()
    assert kept == (source / "chat_template.jinja").read_bytes()


def test_another_template_of_training_takes_its_place(
    copy: Copy, layout: CheckpointLayout, tmp_path: Path
) -> None:
    """The thinking form on a base that does not think, with the layout's image placeholders."""
    notes = exported(trained(copy, "vl", template="ernie_vl_thinking"), tmp_path / "out", layout)
    assert notes == [
        "the chat template is that of training (ernie_vl_thinking), since that of the base model builds other "
        "prompts than training"
    ]
    assert prompt(tmp_path / "out") == "<|begin_of_sentence|>User: q\nAssistant: \n<think>\n"
    assert make_encoder(tmp_path / "out").template == TEMPLATES["ernie_vl_thinking"]
    program = (tmp_path / "out" / "chat_template.jinja").read_text()
    assert ("<|image@placeholder|>" in program) == (layout == "hub")
    assert ("<|IMAGE_PLACEHOLDER|>" in program) == (layout == "transformers")


def test_a_base_that_leaves_tools_out(copy: Copy, tmp_path: Path) -> None:
    source = trained(copy, "dense", RELEASED)
    assert prompt(source, tools=TOOLS) == prompt(source) == "<|begin_of_sentence|>User: q\nAssistant: "
    assert exported(source, tmp_path / "out") == [
        "the chat template is that of training (ernie), since that of the base model leaves out the list of tools"
    ]
    assert prompt(tmp_path / "out") == prompt(source)
    listed = f"\n<tool_list>\n{json.dumps(TOOLS)}\n</tool_list>\n"
    assert prompt(tmp_path / "out", tools=TOOLS) == f"<|begin_of_sentence|>{listed}User: q\nAssistant: "
    # One place only: transformers would take this one, others perhaps that of the tokenizer.
    assert "chat_template" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())


def test_a_base_with_tools_in_a_form_of_its_own_keeps_it(copy: Copy, tmp_path: Path) -> None:
    own = RELEASED.replace("{%- for m", "{%- if tools -%}{{ tools | tojson }}{%- endif -%}{%- for m", 1)
    source = trained(copy, "dense", own)
    assert exported(source, tmp_path / "out") == [
        "the chat template of the base model formats tools differently than training: if the chats had tools, export "
        "with --chat-template trained"
    ]
    assert prompt(tmp_path / "out", tools=TOOLS) == prompt(source, tools=TOOLS)
    assert exported(source, tmp_path / "asked", template="trained") == [
        "the chat template is that of training (ernie), as requested"
    ]
    assert "<tool_list>" in prompt(tmp_path / "asked", tools=TOOLS)


def test_a_base_whose_program_takes_arguments_as_objects_only(copy: Copy, tmp_path: Path) -> None:
    ours = chat_template(TEMPLATES["ernie"], media=False)
    objects = ours.replace("arguments is string", "false")
    assert objects != ours
    assert exported(trained(copy, "dense", objects), tmp_path / "out") == []


def test_the_default_system_message_of_the_base_stays(copy: Copy, tmp_path: Path) -> None:
    system = "{%- if messages[0].role != 'system' -%}{{ 'You are ERNIE.\\n' }}{%- endif -%}"
    source = trained(copy, "dense", RELEASED.replace("{%- for m", system + "{%- for m", 1))
    exported(source, tmp_path / "out")
    assert prompt(tmp_path / "out") == prompt(source)
    assert "You are ERNIE." in prompt(tmp_path / "out", tools=TOOLS)


def test_a_base_without_one(copy: Copy, tmp_path: Path) -> None:
    source = trained(copy, "vl", "")
    assert exported(source, tmp_path / "out") == [
        "the chat template is that of training (ernie_vl), since the base model has none"
    ]
    assert prompt(tmp_path / "out").startswith("<|begin_of_sentence|>User: q\nAssistant: <think>\n\n</think>")
    assert exported(source, tmp_path / "kept", template="base") == [
        "no chat template in the base model: chat endpoints of engines need one"
    ]


def test_a_model_that_was_not_trained_keeps_its_own(copy: Copy, tmp_path: Path) -> None:
    source = copy("dense")
    (source / "chat_template.jinja").write_text(RELEASED)
    assert exported(source, tmp_path / "out") == []
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == RELEASED
    (source / "chat_template.jinja").unlink()
    assert exported(source, tmp_path / "without") == [
        "no chat template in the base model: chat endpoints of engines need one"
    ]


def test_one_that_nobody_knows_is_kept_and_reported(copy: Copy, tmp_path: Path) -> None:
    source = trained(copy, "dense", RELEASED.replace("User: ", "Human: "))
    with pytest.raises(DataError, match="is not known to erniekit"):
        make_encoder(source)
    (note,) = exported(source, tmp_path / "out")
    assert note.startswith("the chat template is that of the base model, whatever training used: ")
    assert prompt(tmp_path / "out") == "<|begin_of_sentence|>Human: q\nAssistant: "
