"""The parallel degrees of a run, and the ranks of each process group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from erniekit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ParallelDims:
    """The degrees of parallelism of a run of `world` processes.

    expert: number of consecutive ranks that share the experts of a model. context: number of consecutive ranks that
    share each row.
    """

    world: int = 1
    expert: int = 1
    context: int = 1

    @property
    def data(self) -> int:
        """Data-parallel degree: number of context-parallel groups, each with different rows."""
        return self.world // self.context

    @property
    def replicas(self) -> int:
        """Number of ranks that hold the same experts."""
        return self.world // self.expert

    def validate(self, experts: Sequence[int] | None = None, heads: tuple[int, int] | None = None) -> None:
        """Raise ConfigError for degrees that do not fit the number of processes or the model.

        experts: number of experts of each modality, empty for a dense model; heads: number of attention heads and of
        key/value heads. None if unknown.
        """
        for name, degree in (("expert", self.expert), ("context", self.context)):
            if self.world % degree:
                raise ConfigError(
                    f"parallel.{name} is {degree}, which does not divide the {processes_text(self.world)} of this run "
                    f"(--devices); use {_choices(_divisors(self.world))}, or another number of --devices (of a plan: "
                    "--gpus)"
                )
        if heads is not None and not _divides_heads(self.context, *heads):
            fitting = [degree for degree in _divisors(self.world) if _divides_heads(degree, *heads)]
            raise ConfigError(
                f"parallel.context is {self.context}, which does not divide the model's "
                f"{_count(heads[0], 'attention head')} and {_count(heads[1], 'key/value head')}; use "
                f"{_choices(fitting)} with these --devices"
            )
        if experts is None or self.expert == 1:
            return
        if not experts:
            raise ConfigError(f"parallel.expert is {self.expert}, but the model has no experts; set it to 1")
        for number in experts:
            if number % self.expert:
                fitting = _divisors(math.gcd(self.world, *experts))
                raise ConfigError(
                    f"parallel.expert is {self.expert}, which does not divide the model's {_count(number, 'expert')}; "
                    f"use {_choices(fitting)} with these --devices"
                )

    def group_ranks(self, rank: int) -> dict[str, tuple[int, ...]]:
        """The ranks of each group that includes `rank`, by the group's name in `Mesh`."""
        ranks = range(self.world)
        expert, context = rank - rank % self.expert, rank - rank % self.context
        return {
            "world": tuple(ranks),
            "expert": tuple(ranks[expert : expert + self.expert]),
            "replicas": tuple(ranks[rank % self.expert :: self.expert]),
            "context": tuple(ranks[context : context + self.context]),
            "data": tuple(ranks[rank % self.context :: self.context]),
        }


def processes_text(number: int) -> str:
    """A count such as "1 process" or "2 processes"."""
    return "1 process" if number == 1 else f"{number} processes"


def _divides_heads(processes: int, heads: int, kv_heads: int) -> bool:
    """Whether each process gets the same number of attention heads and whole key/value heads for them.

    A process has one or more key/value heads, or shares one with other processes.
    """
    return heads % processes == 0 and (kv_heads % processes == 0 or processes % kv_heads == 0)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _choices(numbers: Sequence[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}" if first else last
