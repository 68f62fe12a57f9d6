"""Reverts what Arrow changes in tools and calls.

Arrow's structs have the keys of all rows, with null for the keys that a row does not have; a column with whole and
other numbers becomes floats. Sources: JSON Schema 2020-12, and `nullable` of OpenAPI.
"""

from __future__ import annotations

from typing import Any

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_VALUES = ("default", "const", "enum", "example", "examples")
_COMBINED = ("anyOf", "oneOf", "allOf")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
# Keys of a schema without a type that exclude null.
_STRUCTURE = ("$ref", *_COMBINED, "properties", "items")


def clean_schema(value: Any) -> Any:
    """A tool's object, or the schema inside it, without keys that are only null because of Arrow.

    A null is kept as `default` if the schema allows null, as `const` of the type null, and in lists of values. Floats
    that are whole become integers next to the type "integer" and in counts.
    """
    if isinstance(value, list):
        return [clean_schema(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    cleaned: dict[str, Any] = {}
    integer = "integer" in _types(value.get("type"))
    for key, inner in value.items():
        if inner is None:
            named_null = (key == "default" and _takes_null(value, value)) or (
                key == "const" and _type_takes_null(value.get("type"))
            )
            if named_null:
                cleaned[key] = None
        elif key in _MAPS and isinstance(inner, dict):
            cleaned[key] = {name: clean_schema(one) for name, one in inner.items() if one is not None}
        elif isinstance(inner, float) and (integer or key in _COUNTS):
            cleaned[key] = _whole(inner)
        elif isinstance(inner, list) and integer and key == "enum":
            cleaned[key] = [*map(_whole, inner)]
        else:
            cleaned[key] = inner if key in _VALUES else clean_schema(inner)
    return cleaned


def clean_arguments(arguments: dict[str, Any], parameters: Any) -> dict[str, Any]:
    """The arguments of a call without Arrow's changes, according to the tool's cleaned schema.

    Nulls are removed unless the schema allows them at their place; without a schema all are removed. Floats that are
    whole become integers if the type is "integer". parameters: the schema, None for a tool that is not listed.
    """
    cleaned: dict[str, Any] = _clean(arguments, _variants(parameters, parameters), parameters)
    return cleaned


def _clean(value: Any, schemas: list[dict[str, Any]], root: Any) -> Any:
    """A value that may fit any of the schemas."""
    if isinstance(value, dict):
        found = {key: (inner, _of_key(schemas, key, root)) for key, inner in value.items()}
        return {
            key: _clean(inner, options, root)
            for key, (inner, options) in found.items()
            if inner is not None or any(map(_allows_null, options))
        }
    if isinstance(value, list):
        options = [
            one for schema in schemas for one in _variants(schema.get("items"), root) if "items" in schema
        ]
        return [_clean(inner, options, root) for inner in value]
    types = {one for schema in schemas for one in _types(schema.get("type"))}
    return _whole(value) if "integer" in types and "number" not in types else value


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _of_key(schemas: list[dict[str, Any]], key: str, root: Any) -> list[dict[str, Any]]:
    """The schemas of one key of an object."""
    found = []
    for schema in schemas:
        declared = schema.get("properties")
        if isinstance(declared, dict) and key in declared:
            found += _variants(declared[key], root)
        elif isinstance(schema.get("additionalProperties"), dict):
            found += _variants(schema["additionalProperties"], root)
    return found


def _variants(schema: Any, root: Any, followed: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """A schema, and those that it references or combines. followed: references so far, since they may be circular."""
    if schema is True:
        return [{}]
    if not isinstance(schema, dict):
        return []
    found = [schema]
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference not in followed:
        found += _variants(_referred(reference, root), root, (*followed, reference))
    for key in _COMBINED:
        joined = schema.get(key)
        for inner in joined if isinstance(joined, list) else ():
            found += _variants(inner, root, followed)
    return found


def _referred(reference: str, root: Any) -> Any:
    """The target of a reference inside a schema; None if there is none."""
    start, *steps = reference.split("/")
    value = root if start == "#" else None
    for step in steps:
        name = step.replace("~1", "/").replace("~0", "~")
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _takes_null(schema: dict[str, Any], root: Any) -> bool:
    return any(map(_allows_null, _variants(schema, root)))


def _allows_null(schema: dict[str, Any]) -> bool:
    """Whether a schema itself allows null, without the schemas that it references or combines."""
    if schema.get("nullable") is True:
        return True
    values = schema.get("enum")
    if isinstance(values, list) and None in values:
        return True
    if schema.get("type") is not None:
        return _type_takes_null(schema["type"])
    if schema.get("const") is not None or isinstance(values, list):
        return False
    return not any(schema.get(key) is not None for key in _STRUCTURE)


def _type_takes_null(value: Any) -> bool:
    """Whether the value of a key "type" includes null; Python's names of types occur in data too."""
    return any(
        name in ("null", "any") or "none" in name or name.startswith("optional[") for name in _types(value)
    )


def _types(value: Any) -> list[str]:
    names = value if isinstance(value, list) else [value]
    return [name.lower() for name in names if isinstance(name, str)]
