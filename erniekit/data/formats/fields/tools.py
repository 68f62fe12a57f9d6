"""Tools, converted to one form from the forms found in data."""

from __future__ import annotations

import json
from typing import Any

from erniekit.data.formats.fields.arrow_nulls import clean_schema
from erniekit.data.formats.fields.context import SampleContext, describe_value, quoted
from erniekit.json_fields import STRICT_JSON
from erniekit.local_files import check_json_values

# Keys of a record that list its tools.
TOOL_KEYS = ("tools", "functions")
# Keys of a tool that hold the schema of its arguments: of OpenAI, Anthropic and MCP.
_SCHEMAS = ("parameters", "input_schema", "inputSchema")


def record_tools(where: str, entry: dict[str, Any], sample: SampleContext) -> tuple[dict[str, Any], ...]:
    """The tools of a record or of its system message, under either of TOOL_KEYS. Raises SampleError."""
    tools, functions = (read_tools(entry.get(key), sample) for key in TOOL_KEYS)
    if tools and functions and tools != functions:
        raise sample.error(
            "bad tools", f'{where} has different tools in "tools" and "functions": keep one of them'
        )
    return tools or functions


def read_tools(value: Any, sample: SampleContext) -> tuple[dict[str, Any], ...]:
    """The tools of a record, each {"type": "function", "function": {"name", ...}}.

    value: a list of tools or its JSON text; null and empty values, and such JSON text, mean no tools. A tool has the
    form above, or is only the inner object, or the JSON text of either. The inner object keeps its keys and their
    order, except for Arrow's nulls; the schema of the arguments is put under "parameters". Raises SampleError.
    """
    tools = parsed(value, "tools", "bad tools", sample)
    if says_nothing(tools):
        return ()
    if isinstance(tools, dict):
        tools = [tools]
    if not isinstance(tools, list):
        raise sample.error(
            "bad tools", f"tools must be a list (or its JSON text), not {describe_value(tools)}"
        )
    return tuple(_tool(f"tool {number}", tool, sample) for number, tool in enumerate(tools, 1))


def _tool(where: str, value: Any, sample: SampleContext) -> dict[str, Any]:
    tool = parsed(value, where, "bad tools", sample)
    if not isinstance(tool, dict):
        raise sample.error("bad tools", f"{where} must be an object, not {describe_value(tool)}")
    kind = tool.get("type")
    if kind not in (None, "function") and ("function" in tool or "name" not in tool):
        raise sample.error("bad tools", f'{where}: its "type" must be "function", not {quoted(kind)}')
    function = tool.get("function")
    if says_nothing(function):
        # The bare form may have the type next to the name, as in newer APIs of OpenAI and Anthropic.
        own = ("function", "custom") if "input_schema" in tool else ("function",)
        function = {key: inner for key, inner in tool.items() if key != "type" or inner not in own}
        function.pop("function", None)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        detail = f'{where} must be {{"type": "function", "function": {{"name", ...}}}}, and have a name'
        raise sample.error("bad tools", detail)
    function = _with_parameters(where, function, sample)
    cleaned: dict[str, Any] = clean_schema(function)
    if json_text(where, function, "bad tools", sample) != json_text(where, cleaned, "bad tools", sample):
        sample.notice("nulls in tools, which Arrow adds, are removed")
    return {"type": "function", "function": cleaned}


def _with_parameters(where: str, function: dict[str, Any], sample: SampleContext) -> dict[str, Any]:
    """A tool with the schema of its arguments as an object under "parameters"."""
    schemas = {}
    for key in _SCHEMAS:
        schema = parsed(function.get(key), f'{where}: "{key}"', "bad tools", sample)
        if schema is None:
            continue
        if not isinstance(schema, dict):
            detail = f'"{key}" must be a JSON schema (an object), not {describe_value(schema)}'
            raise sample.error("bad tools", f"{where}: {detail}")
        properties = parsed(schema.get("properties"), f'{where}: "{key}", "properties"', "bad tools", sample)
        schemas[key] = {**schema, "properties": properties} if "properties" in schema else schema
    different = [schema for schema in schemas.values() if schema]
    if any(schema != different[0] for schema in different):
        raise sample.error("bad tools", f"{where} has different schemas in {' and '.join(schemas)}")
    renamed: dict[str, Any] = {}
    for key, inner in function.items():
        if key not in _SCHEMAS:
            renamed[key] = inner
        elif schemas:
            renamed["parameters"] = different[0] if different else {}
    return renamed


def says_nothing(value: Any) -> bool:
    """Whether a value is null, empty, or an object with only such values (Arrow adds the keys of other rows)."""
    if isinstance(value, dict):
        return all(map(says_nothing, value.values()))
    return value is None or value in ("", [])


def json_text(where: str, value: Any, reason: str, sample: SampleContext) -> str:
    """A value as JSON text. Raises SampleError if that is not possible."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()  # fails for unpaired surrogates
        return text
    except (ValueError, RecursionError) as error:
        raise sample.error(reason, f"{where} cannot be written as JSON: {error}") from error


def parsed(value: Any, what: str, reason: str, sample: SampleContext) -> Any:
    """The value of JSON text, None for blank text, any other value unchanged. Raises SampleError."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        check_json_values(value)
        return STRICT_JSON.decode(value)
    except json.JSONDecodeError as error:
        detail = f"{what}: not valid JSON: {error.msg} (character {error.pos + 1} of {quoted(value)})"
        raise sample.error(reason, detail) from error
    except (ValueError, RecursionError) as error:
        raise sample.error(reason, f"{what}: not valid JSON: {error}") from error
