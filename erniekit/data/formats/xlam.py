"""Format "xlam": function calls as in Salesforce's xLAM data: {"query", "answers": calls, "tools"}.

Calls and tools are JSON text. A tool's parameters are only the properties, with Python's names of types, and are
converted to a JSON schema: {"a": {"type": "int, optional", "default": 1}} -> {"type": "object", "properties": {"a":
{"type": "integer", "default": 1}}, "required": []}.
"""

from __future__ import annotations

from typing import Any

from erniekit.data.chat.conversation import Conversation, Message, TextPart
from erniekit.data.formats.fields.calls import read_tool_calls
from erniekit.data.formats.fields.context import SampleContext
from erniekit.data.formats.fields.tools import read_tools

_KEYS = frozenset(("query", "answers", "tools", "system"))
_TYPES = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "list": "array",
    "tuple": "array",
    "set": "array",
    "dict": "object",
}
_OPTIONAL = ", optional"


def parse_xlam(record: dict[str, Any], sample: SampleContext) -> Conversation:
    """One record as a Conversation. Raises SampleError."""
    sample.check_keys("the record", "record", record, _KEYS)
    tools = tuple(_with_schema(tool, sample) for tool in read_tools(record["tools"], sample))
    question = Message("user", (TextPart(sample.text(record, "query")),), trained=False)
    answer = Message(
        "assistant", read_tool_calls('"answers"', record["answers"], sample, tools), trained=True
    )
    messages = sample.with_system(record, [question, answer])
    return Conversation(tuple(messages), sample.sample_id, tools)


def _with_schema(tool: dict[str, Any], sample: SampleContext) -> dict[str, Any]:
    """The tool with a JSON schema of its parameters; a tool that has a schema is unchanged."""
    function = tool["function"]
    parameters = function.get("parameters")
    if (
        not isinstance(parameters, dict)
        or "properties" in parameters
        or isinstance(parameters.get("type"), str)
    ):
        return tool
    sample.notice("the parameters of xLAM's tools are rewritten as JSON schemas")
    properties, required = {}, []
    for name, value in parameters.items():
        if not isinstance(value, dict):
            raise sample.error(
                "bad tools", f"tool {function['name']}: its parameter {name} must be an object"
            )
        kind = value.get("type")
        optional = "default" in value
        if isinstance(kind, str):
            optional = optional or kind.endswith(_OPTIONAL)
            value = {**value, "type": _json_type(kind.removesuffix(_OPTIONAL).strip())}
        properties[name] = value
        if not optional:
            required.append(name)
    schema = {"type": "object", "properties": properties, "required": required}
    return {**tool, "function": {**function, "parameters": schema}}


def _json_type(kind: str) -> str:
    """JSON's name of a type such as "int" or "List[int]", without the part in brackets."""
    return _TYPES.get(kind.partition("[")[0].strip().lower(), kind)
