"""The chat templates of ERNIE 4.5, in Jinja, as `chat_template.jinja` holds them.

Rendering follows the released models (see `erniekit.data.template`, which tokenises the same text for training).
The VL template is that of the flat Hub layout, whose processors expand `<|image@placeholder|>`.
"""

from __future__ import annotations

_PLAIN_TEXT = """\
{%- macro plain(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {{- part['text'] -}}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
"""

TEXT_TEMPLATE = (
    _PLAIN_TEXT
    + """\
{{- '<|begin_of_sentence|>' -}}
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}
        {{- plain(message['content']) + '\\n' -}}
    {%- elif message['role'] == 'user' -%}
        {{- 'User: ' + plain(message['content']) + '\\n' -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- 'Assistant: ' + plain(message['content']) + '<|end_of_sentence|>' -}}
    {%- else -%}
        {{- raise_exception("this chat template knows the roles system, user and assistant, not " + message['role']) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt is not defined or add_generation_prompt -%}
    {{- 'Assistant: ' -}}
{%- endif -%}
"""
)

VL_TEMPLATE = (
    _PLAIN_TEXT
    + """\
{%- set seen = namespace(images=0, videos=0) -%}
{{- '<|begin_of_sentence|>' -}}
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}
        {{- plain(message['content']) + '\\n' -}}
    {%- elif message['role'] == 'user' -%}
        {{- 'User: ' -}}
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
        {%- endif -%}
    {%- elif message['role'] == 'assistant' -%}
        {{- '\\nAssistant: ' + plain(message['content']) + '<|end_of_sentence|>' -}}
    {%- else -%}
        {{- raise_exception("this chat template knows the roles system, user and assistant, not " + message['role']) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt is not defined or add_generation_prompt -%}
    {{- '\\nAssistant: ' -}}
    {%- if enable_thinking is not defined or not enable_thinking -%}
        {{- '<think>\\n\\n</think>\\n\\n' -}}
    {%- endif -%}
{%- endif -%}
"""
)
