"""The parallel degrees of a run, and the ranks that each of them puts together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from erniekit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ParallelDims:
    """How `world` processes share a model and its data.

    expert: consecutive ranks that share the experts of a model. context: consecutive ranks that share each row.
    """

    world: int = 1
    expert: int = 1
    context: int = 1

    @property
    def data(self) -> int:
        """Ranks with rows of their own (`context` processes each)."""
        return self.world // self.context

    @property
    def replicas(self) -> int:
        """Ranks that hold the same experts."""
        return self.world // self.expert

    def validate(self, experts: Sequence[int] | None = None, heads: tuple[int, int] | None = None) -> None:
        """Raise ConfigError for degrees that do not fit the processes or the model.

        experts: number of experts of each modality, empty for a dense model; heads: of attention, and of keys and
        values. None where they are not known.
        """
        for name, degree in (("expert", self.expert), ("context", self.context)):
            if self.world % degree:
                raise ConfigError(
                    f"parallel.{name} is {degree}, which does not divide the {processes_text(self.world)} of this run "
                    f"(--devices); use {_choices(_divisors(self.world))}, or another number of --devices"
                )
        if heads is not None and not _shares_heads(self.context, *heads):
            fitting = [degree for degree in _divisors(self.world) if _shares_heads(degree, *heads)]
            raise ConfigError(
                f"parallel.context is {self.context}, among which the model's {heads[0]} attention heads and "
                f"{heads[1]} heads of keys and values cannot be shared; use {_choices(fitting)} with these --devices"
            )
        if experts is None or self.expert == 1:
            return
        if not experts:
            raise ConfigError(f"parallel.expert is {self.expert}, but the model has no experts; set it to 1")
        for number in experts:
            if number % self.expert:
                fitting = _divisors(math.gcd(self.world, *experts))
                raise ConfigError(
                    f"parallel.expert is {self.expert}, which does not divide the model's {number} experts; use "
                    f"{_choices(fitting)} with these --devices"
                )

    def groups(self, rank: int) -> dict[str, tuple[int, ...]]:
        """The ranks of each group of which `rank` is one, by the names that they have in `Mesh`."""
        everyone = range(self.world)
        expert, context = rank - rank % self.expert, rank - rank % self.context
        return {
            "world": tuple(everyone),
            "expert": tuple(everyone[expert : expert + self.expert]),
            "replicas": tuple(everyone[rank % self.expert :: self.expert]),
            "context": tuple(everyone[context : context + self.context]),
            "data": tuple(everyone[rank % self.context :: self.context]),
        }


def processes_text(number: int) -> str:
    """ "1 process" or "2 processes"."""
    return "1 process" if number == 1 else f"{number} processes"


def _shares_heads(processes: int, heads: int, kv_heads: int) -> bool:
    """Whether each process can have as many heads, and what it needs of keys and values in whole heads: several of
    its own, or one that it shares."""
    return heads % processes == 0 and (kv_heads % processes == 0 or processes % kv_heads == 0)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _choices(numbers: Sequence[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}" if first else last
