"""Rounds of turns, and the table that they make."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tools.bench.peers.turns import Turn
from tools.bench.peers.workloads import OURS, Workload

# Cores that other processes may use during a turn that counts, and how many such rounds a result needs.
QUIET, MIN_QUIET = 0.1, 3
# One turn of every side, by name.
Round = dict[str, Turn]
HEADER = (
    *("peer", "tokens/s, erniekit / peer", "ratio (lowest to highest)", "memory, GiB, erniekit / peer"),
    "mean loss, erniekit / peer",
)


@dataclass(frozen=True)
class Result:
    """What a workload's sides did: the warm-up, the rounds after it, and peak memory in GiB by side.

    by_cpu_time: rates are by the CPU time of a side instead of the clock, which other work does not disturb.
    """

    workload: Workload
    warm_up: Round
    rounds: list[Round]
    memory: dict[str, float]
    by_cpu_time: bool = False

    @property
    def quiet(self) -> list[Round]:
        """The rounds that other work on the machine did not disturb."""
        return [turns for turns in self.rounds if self.by_cpu_time or is_quiet(turns)]

    @property
    def counted(self) -> list[Round]:
        """The rounds behind the figures: quiet ones, or all where there are too few."""
        return self.quiet if len(self.quiet) >= MIN_QUIET else self.rounds

    def rates(self, side: str) -> list[float]:
        """Real tokens per second in each counted round."""
        found = [turns[side] for turns in self.counted]
        return [turn.tokens / (turn.cpu_seconds if self.by_cpu_time else turn.seconds) for turn in found]

    def ratios(self, peer: str) -> list[float]:
        """erniekit's rate over the peer's, round by round."""
        return [ours / theirs for ours, theirs in zip(self.rates(OURS), self.rates(peer), strict=True)]

    def loss(self, side: str) -> float:
        """The mean over all steps, those of the warm-up included."""
        return statistics.fmean(
            step.loss for turns in (self.warm_up, *self.rounds) for step in turns[side].steps
        )

    def disagreements(self) -> list[str]:
        """A sentence for each peer with another loss than erniekit's."""
        ours = self.loss(OURS)
        return [
            f"{self.workload.name}: the mean loss of {peer.name!r} is {self.loss(peer.name):.5f}, erniekit's "
            f"{ours:.5f}; they may differ by {peer.tolerance:.1%}"
            for peer in self.workload.peers
            if peer.name in self.warm_up and abs(self.loss(peer.name) - ours) > peer.tolerance * ours
        ]


def is_quiet(turns: Round) -> bool:
    """Whether other processes hardly used the machine in any of the turns."""
    return all(turn.foreign <= QUIET for turn in turns.values())


def describe(result: Result) -> str:
    """The title of a workload, its rounds, and a Markdown table with a line per peer."""
    quiet, count = len(result.quiet), len(result.rounds)
    note = f"{count} rounds, " + ("by CPU time" if result.by_cpu_time else f"{quiet} of them undisturbed")
    if result.counted is result.rounds and quiet < count:
        foreign = statistics.fmean(turn.foreign for turns in result.rounds for turn in turns.values())
        note += f": not a fair comparison, as other processes used {foreign:.1f} cores meanwhile"
    lines = [f"{result.workload.name}: {result.workload.title} ({note})", ""]
    if len(result.warm_up) == 1:
        rates = result.rates(OURS)
        lines.append(
            f"erniekit: {statistics.median(rates):,.0f} tokens/s ({min(rates):,.0f} to {max(rates):,.0f}), "
            f"{result.memory[OURS]:.1f} GiB, mean loss {result.loss(OURS):.4f}"
        )
        return "\n".join(lines)
    lines += markdown(HEADER), markdown(["---"] * len(HEADER))
    return "\n".join(
        [
            *lines,
            *(markdown(cells(result, p.name)) for p in result.workload.peers if p.name in result.warm_up),
        ]
    )


def cells(result: Result, peer: str) -> list[str]:
    """The line of a peer."""
    ours, theirs = (statistics.median(result.rates(side)) for side in (OURS, peer))
    ratios = result.ratios(peer)
    return [
        peer,
        f"{ours:,.0f} / {theirs:,.0f}",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        f"{result.memory[OURS]:.1f} / {result.memory[peer]:.1f}",
        f"{result.loss(OURS):.4f} / {result.loss(peer):.4f}",
    ]


def markdown(values: Sequence[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(values)} |"
