"""Chats with calls of tools, their results, and whatever is hard to write into a template."""

from __future__ import annotations

from typing import Any

from erniekit.data.chat.conversation import ToolCallPart
from tests.unit.data.helpers import chat, encoded, noise, video

PARAMETERS = {"type": "object", "properties": {"of": {"type": "string", "description": '数 <b> & "c"'}}}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "count", "description": "Zählt.", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": 'a "b"\n', "parameters": {}}},
]
CALL = ToolCallPart("count", '{"of": "红色 <circle> & it\'s"}')
OTHER_CALL = ToolCallPart('a "b"\n', '{"deep": {"list": [1, 2.5, null, true]}}')
LOOPS = [
    chat(("user", "Which digit?"), ("assistant", "7"), tools=TOOLS),
    chat(
        ("system", "Be brief."),
        ("user", "How many?"),
        ("assistant", [" First\n", CALL, OTHER_CALL]),
        ("tool", '{"count": 2}'),
        ("tool", " <tool_output>\n"),
        ("assistant", [OTHER_CALL]),
        ("tool", ["one ", "two"]),
        ("assistant", "2024"),
        ("user", "And?"),
        ("assistant", [CALL]),
        ("tool", "nothing"),
        ("user", "So?"),
        ("assistant", "0"),
        tools=TOOLS,
    ),
    # Results without a list of tools: the list may be the server's.
    chat(("user", "q"), ("assistant", [CALL]), ("tool", "t"), ("assistant", "a")),
]
RED, CLIP = encoded(noise(28, 28)), video(28, 28, 2)
MEDIA_LOOP = chat(
    ("user", [RED, "What is it?", CLIP]),
    ("assistant", [CALL]),
    ("tool", ["see ", RED, CLIP]),
    ("tool", [RED]),
    ("assistant", "red"),
    ("user", ["And ", RED, CLIP]),
    ("assistant", "green"),
    tools=TOOLS,
)
