"""Function calls in answers: names, arguments and validity under the schemas of the tools.

Calls are compared one by one, in order, as in the AST evaluation of the Berkeley Function-Calling Leaderboard (Patil
et al. 2025), but only the reference's value of an argument is right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from erniekit.evaluation.metrics.structured import same_json
from erniekit.generation.answer import ToolCall

Tools = Sequence[Mapping[str, Any]]


def call_name(answer: Sequence[ToolCall], reference: Sequence[ToolCall]) -> float | None:
    """Share of calls with the right name, over the longer list of calls; None if the reference has no calls."""
    return _share(
        [one.name == other.name for one, other in zip(answer, reference, strict=False)], answer, reference
    )


def call_arguments(answer: Sequence[ToolCall], reference: Sequence[ToolCall]) -> float | None:
    """Share of calls with the right name and arguments, compared as JSON values; otherwise as `call_name`."""
    right = [_same_call(one, other) for one, other in zip(answer, reference, strict=False)]
    return _share(right, answer, reference)


def call_match(answer: Sequence[ToolCall], reference: Sequence[ToolCall]) -> float | None:
    """1 if the answer has exactly the calls of the reference, in order; None if the reference has no calls."""
    share = call_arguments(answer, reference)
    return None if share is None else float(share == 1)


def call_valid(answer: Sequence[ToolCall], reference: Sequence[ToolCall], tools: Tools) -> float | None:
    """Share of the answer's calls that are valid, 0 if it has none; None if the reference has no calls."""
    if not reference:
        return None
    return sum(is_valid(call, tools) for call in answer) / len(answer) if answer else 0.0


def call_none(answer: Sequence[ToolCall], reference: Sequence[ToolCall], tools: Tools) -> float | None:
    """1 if the answer has no calls; None if the reference has calls or there are no tools."""
    if reference or not tools:
        return None
    return float(not answer)


def is_valid(call: ToolCall, tools: Tools) -> bool:
    """Whether a call names one of the tools and that tool's JSON schema accepts its arguments.

    A missing or invalid schema accepts any JSON object. References are resolved within the schema only.
    """
    if call.error is not None or call.arguments is None:
        return False
    for tool in tools:
        function = tool.get("function", tool)
        if function.get("name") == call.name:
            return _accepts(function.get("parameters"), call.arguments)
    return False


def _accepts(schema: Any, arguments: dict[str, Any]) -> bool:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    if not isinstance(schema, Mapping):
        return True
    draft = validator_for(schema, default=Draft202012Validator)
    try:
        draft.check_schema(schema)
        # The default registry would fetch $ref URLs from the network.
        return bool(draft(schema, registry=Registry()).is_valid(arguments))
    except (SchemaError, Unresolvable, RecursionError, re.error):
        return True


def _same_call(one: ToolCall, other: ToolCall) -> bool:
    return one.error is None and one.name == other.name and same_json(one.arguments, other.arguments)


def _share(right: Sequence[bool], answer: Sequence[ToolCall], reference: Sequence[ToolCall]) -> float | None:
    if not reference:
        return None
    return sum(right) / max(len(answer), len(reference))
