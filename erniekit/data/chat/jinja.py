"""Writes a template as a Jinja program for engines: `chat_template.jinja`.

The program takes messages in OpenAI's form and renders the same text as `Template`. Images and videos become
`<|image@placeholder|>` and `<|video@placeholder|>`, which the processors of the flat Hub layout expand.
"""

from __future__ import annotations

import json
import re

from erniekit.data.chat.template import Template

_PLAIN = """\
{%- macro plain(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- elif content is not none -%}
        {%- for part in content -%}
            {{- part['text'] -}}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
"""
_MEDIA_COUNTS = """\
{%- set seen = namespace(images=0, videos=0) -%}
"""
# Answers after the last question keep their reasoning: in a loop of tool calls, there are several.
_LAST_QUESTION = """\
{%- set last = namespace(question=-1) -%}
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}
        {%- set last.question = loop.index0 -%}
    {%- endif -%}
{%- endfor -%}
"""
_SYSTEM = """\
{%- if messages[0]['role'] == 'system' -%}
    {{- SYSTEM_BEFORE + plain(messages[0]['content']) + SYSTEM_AFTER -}}
{%- else -%}
    {{- DEFAULT_SYSTEM -}}
{%- endif -%}
"""
_TOOLS = """\
{%- if tools -%}
    {{- TOOLS_BEFORE + tools | tojson + TOOLS_AFTER -}}
{%- endif -%}
"""
_TURNS = """\
{%- for message in messages -%}
    {%- if message['role'] in ['user', 'tool'] -%}
        {%- set tool = message['role'] == 'tool' -%}
        {%- if not tool or loop.first or messages[loop.index0 - 1]['role'] != 'tool' -%}
            {{- USER_BEFORE -}}
        {%- else -%}
            {{- BETWEEN_RESULTS -}}
        {%- endif -%}
        {%- if tool -%}
            {{- RESULT_BEFORE -}}
        {%- endif -%}
CONTENT
        {%- if tool -%}
            {{- RESULT_AFTER -}}
        {%- endif -%}
        {%- if not tool or loop.last or messages[loop.index0 + 1]['role'] != 'tool' -%}
            {{- USER_AFTER -}}
        {%- endif -%}
    {%- elif message['role'] == 'assistant' -%}
START
        {%- set text = plain(message['content']) -%}
        {%- if text -%}
            {{- ANSWER_BEFORE + text + ANSWER_AFTER -}}
        {%- endif -%}
        {%- for call in message['tool_calls'] or [] -%}
            {%- set function = call['function'] or call -%}
            {{- CALL_BEFORE + '{"name": ' + function['name'] | tojson + ', "arguments": ' -}}
            {%- set arguments = function['arguments'] or {} -%}
            {%- if arguments is string -%}
                {{- arguments -}}
            {%- else -%}
                {{- arguments | tojson -}}
            {%- endif -%}
            {{- '}' + CALL_AFTER -}}
        {%- endfor -%}
        {{- TERMINATOR -}}
        {%- if not loop.last -%}
            {{- AFTER_ANSWER -}}
        {%- endif -%}
    {%- elif message['role'] != 'system' -%}
        {{- raise_exception("this chat template knows system, user, assistant and tool, not " + message['role']) -}}
    {%- elif not loop.first -%}
        {{- raise_exception("this chat template takes a system message as the first one only") -}}
    {%- endif -%}
{%- endfor -%}
"""
_TEXT_CONTENT = """\
        {{- plain(message['content']) -}}\
"""
# The loop over the parts is in the body, not in a macro: engines search the body for it to detect that the template
# takes images as parts.
_MEDIA_CONTENT = """\
        {%- if message['content'] is string -%}
            {{- message['content'] -}}
        {%- else -%}
            {%- for part in message['content'] -%}
                {%- if part['type'] in ['image', 'image_url'] -%}
                    {%- set seen.images = seen.images + 1 -%}
                    {{- 'Picture ' ~ seen.images ~ ':<|IMAGE_START|><|image@placeholder|><|IMAGE_END|>' -}}
                {%- elif part['type'] in ['video', 'video_url'] -%}
                    {%- set seen.videos = seen.videos + 1 -%}
                    {{- 'Video ' ~ seen.videos ~ ':<|VIDEO_START|><|video@placeholder|><|VIDEO_END|>' -}}
                {%- else -%}
                    {{- part['text'] -}}
                {%- endif -%}
            {%- endfor -%}
        {%- endif -%}\
"""
_HISTORY_START = """\
        {{- ANSWER_START -}}\
"""
_THINKING_START = """\
        {%- if loop.index0 > last.question -%}
            {%- set reasoning = message['reasoning_content'] or message['reasoning'] or '' -%}
            {{- PROMPT_END + (reasoning.strip('\\n') if reasoning.strip() else '') + END_OF_REASONING -}}
        {%- else -%}
            {{- ANSWER_START -}}
        {%- endif -%}\
"""
_PROMPT = """\
{%- if add_generation_prompt is not defined or add_generation_prompt -%}
    {{- PROMPT_END -}}
{%- endif -%}
"""
# Statements that are empty because the template does not have the text.
_EMPTY = re.compile(
    r"""
    ^\ *\{\{-\ ""\ -\}\}\n
    | ^\ *\{%-\ else\ -%\}\n(?=\ *\{%-\ endif)
    | ^\ *\{%-\ if\ [^%]*-%\}\n\ *\{%-\ endif\ -%\}\n
    """,
    re.MULTILINE | re.VERBOSE,
)
_PROMPT_WITH_SWITCH = """\
{%- if add_generation_prompt is not defined or add_generation_prompt -%}
    {{- ANSWER_START -}}
    {%- if enable_thinking is not defined or not enable_thinking -%}
        {{- GENERATION_START -}}
    {%- endif -%}
{%- endif -%}
"""


def chat_template(template: Template, *, media: bool) -> str:
    """The Jinja program of `template`. media: whether it renders images and videos, for a VL model."""
    thinks = template.thinking == "on"
    settings = "{{- SETTINGS -}}\n"
    opening = [_TOOLS, _SYSTEM, settings] if template.tools_first else [_SYSTEM, settings, _TOOLS]
    program = "".join(
        [
            _PLAIN,
            _MEDIA_COUNTS if media else "",
            _LAST_QUESTION if thinks else "",
            "{{- BEGIN -}}\n",
            *opening,
            "{{- OPENING_END -}}\n",
            _TURNS,
            _PROMPT_WITH_SWITCH if template.thinking == "off" else _PROMPT,
        ]
    )
    parts = {
        "CONTENT": _MEDIA_CONTENT if media else _TEXT_CONTENT,
        "START": _THINKING_START if thinks else _HISTORY_START,
    }
    texts = {name: json.dumps(text, ensure_ascii=False) for name, text in _texts(template).items()}
    program = _filled(_filled(program, parts), texts).replace('"" + ', "").replace(' + ""', "")
    while program != (program := _EMPTY.sub("", program)):
        pass
    return program


def _texts(template: Template) -> dict[str, str]:
    """The texts that replace the names in capitals."""
    return {
        "BEGIN": template.begin,
        "SYSTEM_BEFORE": template.system[0],
        "SYSTEM_AFTER": template.system[1],
        "DEFAULT_SYSTEM": template.default_system,
        "SETTINGS": template.settings,
        "TOOLS_BEFORE": template.tools[0],
        "TOOLS_AFTER": template.tools[1],
        "OPENING_END": template.opening_end,
        "USER_BEFORE": template.user[0],
        "USER_AFTER": template.user[1],
        "BETWEEN_RESULTS": template.between_results,
        "RESULT_BEFORE": template.tool_result[0],
        "RESULT_AFTER": template.tool_result[1],
        "ANSWER_START": template.answer_start,
        "GENERATION_START": template.generation_start,
        "PROMPT_END": template.before_generation + template.answer_start + template.generation_start,
        "END_OF_REASONING": template.end_of_reasoning,
        "ANSWER_BEFORE": template.answer[0],
        "ANSWER_AFTER": template.answer[1],
        "CALL_BEFORE": template.tool_call[0],
        "CALL_AFTER": template.tool_call[1],
        "TERMINATOR": template.terminator,
        "AFTER_ANSWER": template.after_answer,
    }


def _filled(program: str, values: dict[str, str]) -> str:
    return re.sub(r"\b[A-Z]+(_[A-Z]+)*\b", lambda name: values.get(name[0], name[0]), program)
