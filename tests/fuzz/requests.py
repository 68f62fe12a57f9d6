"""Mutated bodies of chat requests."""

from __future__ import annotations

import json
import random
from pathlib import Path

from erniekit.data.media.access import NO_URLS, PUBLIC_URLS
from erniekit.generation.sampling import Sampling
from erniekit.serving.limits import check_text
from erniekit.serving.request import read_conversation, read_request, read_sampling
from tests.fuzz.driver import mutated_bytes, mutated_value

_PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="
_BODY: object = {
    "model": "tiny",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": _PIXEL}],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "time", "arguments": '{"zone": "Asia"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "12:00"},
        {"role": "user", "content": "Thanks."},
    ],
    "tools": [{"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}],
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 40,
    "max_tokens": 9,
    "stop": ["x"],
    "stream": True,
    "stream_options": {"include_usage": True},
    "chat_template_kwargs": {"enable_thinking": False},
    "seed": 1,
}


def http_body(rng: random.Random, directory: Path) -> None:
    """The body of POST /v1/chat/completions, up to the encoder."""
    body = _BODY
    if rng.random() < 0.3:
        content = mutated_bytes(rng, json.dumps(body).encode())
    else:
        for _ in range(rng.randint(1, 3)):
            body = mutated_value(rng, body)
        content = json.dumps(body).encode()
    request = read_request(content)
    check_text(request.messages, request.tools, 1000)
    read_conversation(request, "request 1", PUBLIC_URLS if rng.random() < 0.5 else NO_URLS)
    read_sampling(request, Sampling(), 10, 1000)
