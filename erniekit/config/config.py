"""The configuration of a run: every section, and the rules between them."""

import math
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

    def num_rows(self, ranks: int = 1) -> int:
        """Packed sequences per optimizer step with `ranks` data-parallel ranks.

        train.rows_per_step may not be a multiple of `ranks`: `erniekit.train.distributed` checks it.
        """
        train = self.train
        if train.rows_per_step is not None:
            return train.rows_per_step
        rows = 1 if train.tokens_per_step is None else train.tokens_per_step // self.data.max_length
        return max(1, math.ceil(rows / ranks)) * ranks

    def with_rows(self, rows: int) -> Self:
        """A copy with train.rows_per_step."""
        return self.model_copy(update={"train": self.train.model_copy(update={"rows_per_step": rows})})
