"""Chat templates of others: rendered as transformers does, in bounded time, memory and length."""

from __future__ import annotations

import pytest

from erniekit.data.chat import render
from erniekit.data.chat.families import TEMPLATES, resolve_template
from erniekit.data.chat.jinja import chat_template
from erniekit.data.chat.render import RenderError, render_chat
from erniekit.errors import DataError
from tests.unit.data.helpers import make_tokenizer

MESSAGES = [{"role": "user", "content": "x"}]
PROGRAM = """\
{{ bos_token }}
{%- for message in messages %}
  {%- if message.role == 'tool' %}{% continue %}{% endif %}
  {%- if loop.first and tools is not none %}
{{ tools | tojson }}
  {% endif %}
{% generation %}{{ message['content'] }}{% endgeneration %}
{% endfor %}
{% if add_generation_prompt %}Assistant: {% endif %}
"""


def test_programs_see_what_transformers_gives_them() -> None:
    tokenizer = make_tokenizer(PROGRAM)
    messages = [*MESSAGES, {"role": "tool", "content": "no"}, {"role": "user", "content": "é<b>"}]
    tools = [{"type": "function", "function": {"name": "ü<", "parameters": {"type": "object"}}}]
    for given in (None, tools):
        expected = tokenizer.apply_chat_template(
            messages, tools=given, add_generation_prompt=True, tokenize=False
        )
        assert render_chat(PROGRAM, messages, given, tokenizer.special_tokens_map) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("{{ 10 ** (10 ** 9) }}", "takes more than 1 s|takes too much memory"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "takes more than 1 s",
        ),
        ("{{ 'x' * (10 ** 11) }}", "takes too much memory"),
        ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "writes more than 1,048,576 characters"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "RecursionError"),
        ("{{ messages.__class__.__mro__ }}{{ cycler.__init__.__globals__ }}", "SecurityError"),
        ("{{ raise_exception('no') }}", "^no$"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{% include 'a' %}", "Error"),
        pytest.param("x" * (1 << 20) + "x", "has more than 1,048,576 characters", id="long"),
    ],
)
def test_programs_that_take_too_much(monkeypatch: pytest.MonkeyPatch, program: str, message: str) -> None:
    monkeypatch.setattr(render, "_CPU_SECONDS", 1)
    with pytest.raises(RenderError, match=message):
        render_chat(program, MESSAGES)


def test_a_hostile_template_is_an_error_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "_CPU_SECONDS", 1)
    with pytest.raises(DataError, match=r"chat template fails on a simple question: .*; set data\.template"):
        resolve_template("auto", make_tokenizer("{{ 'x' * (10 ** 11) }}"), is_vl=False)
    with pytest.raises(DataError, match="it renders 'xxxx") as caught:
        resolve_template("auto", make_tokenizer("{{ 'x' * 100000 }}"), is_vl=False)
    assert len(str(caught.value)) < 1000


def test_templates_of_erniekit_need_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "_render", lambda request: pytest.fail("a process was started"))
    for template in TEMPLATES.values():
        tokenizer = make_tokenizer(chat_template(template, media=template.takes_media))
        assert resolve_template("auto", tokenizer, is_vl=True) == template
