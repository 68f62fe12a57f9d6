"""The base class of sections and the types of their fields."""

import types
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializationInfo,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from erniekit.errors import ConfigError
from erniekit.paths import escape_path, expand_path

BAD_PATH = "bad_path"
"""The pydantic error type of a path that cannot be expanded; `ctx["text"]` is the message."""

AS_WRITTEN = "as_written"
"""The context of a dump for reading back: `$` in paths is escaped."""

BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
"""Words for booleans, in lower case."""


def as_list(value: Any) -> Any:
    """A string as a list, split at commas."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _expand(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return expand_path(value)
    except ConfigError as error:
        raise PydanticCustomError(BAD_PATH, "{text}", {"text": str(error)}) from None


def _dump(path: str, info: SerializationInfo) -> str:
    return escape_path(path) if info.context == AS_WRITTEN else path


Text = Annotated[str, Field(min_length=1)]
PathText = Annotated[str, Field(min_length=1), BeforeValidator(_expand), PlainSerializer(_dump)]
"""A path. Validation expands `~`, `${NAME}` and `$NAME`."""
TextList = Annotated[list[Text], BeforeValidator(as_list)]
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """Base of all sections: frozen, without unknown keys and infinite numbers.

    Types are converted only without loss: 100.0 and 1e3 are whole numbers, and yes, no, on and off are booleans.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _read_scalar(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = _plain_types(cls.model_fields[str(info.field_name)].annotation)
        if int in kinds and isinstance(value, float) and value.is_integer():
            return int(value)
        if bool in kinds and isinstance(value, str):
            return BOOLEANS.get(value.lower(), value)
        return value


def _plain_types(annotation: Any) -> list[Any]:
    """The types of a field, such as int and None for `Positive | None`."""
    is_union = get_origin(annotation) in (Union, types.UnionType)
    members = get_args(annotation) if is_union else (annotation,)
    return [member.__origin__ if get_origin(member) is Annotated else member for member in members]
