"""The configuration of a run: every section, and the rules between them."""

from typing import Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from erniekit.config.rules import CONFLICT, find_conflicts
from erniekit.config.schema import Schema


class Config(Schema):
    """A whole run. `erniekit.config.load_config` reads one; Config.model_validate checks the same rules."""

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        conflicts = list(find_conflicts(self))
        if conflicts:
            text = "; ".join(f"{conflict.keys[0]}: {conflict.message}" for conflict in conflicts)
            raise PydanticCustomError(CONFLICT, "{text}", {"text": text, "conflicts": conflicts})
        return self
