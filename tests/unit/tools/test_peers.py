"""The bench beside transformers, PEFT and TRL: turns, the table, and that all sides train on the same rows."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from erniekit.config import load_config
from erniekit.interrupt import InterruptGuard
from tools.bench.peers import prepare, run
from tools.bench.peers.ours import TurnHook
from tools.bench.peers.results import Result, Round, describe
from tools.bench.peers.turns import Side, SideError, Step, Turn, Turns
from tools.bench.peers.workloads import OURS, WORKLOADS, Workload, quick

TEXT = next(workload for workload in WORKLOADS if workload.name == "text-full")
FIRST, SECOND = (peer.name for peer in TEXT.peers[:2])
SIDE = """
from tools.bench.peers.turns import Turns
turns = Turns()
print("a line of a library")
goes_on = turns.ready()
while goes_on:
    goes_on = turns.step_done(10, 2.5)
"""


def turns_at(rates: dict[str, float], foreign: float = 0.0, loss: float = 2.0) -> Round:
    return {side: Turn([Step(100, loss)], 100 / rate, 50 / rate, foreign) for side, rate in rates.items()}


def result(rounds: list[Round]) -> Result:
    return Result(TEXT, rounds[0], rounds, dict.fromkeys(rounds[0], 1.25))


def test_the_table_has_ratios_of_undisturbed_rounds() -> None:
    quiet = [(300, 100, 200), (320, 80, 200), (310, 100, 155)]
    rounds = [turns_at(dict(zip((OURS, FIRST, SECOND), rates, strict=True))) for rates in quiet]
    found = result([*rounds, turns_at({OURS: 9, FIRST: 1, SECOND: 1}, foreign=0.2)])
    text = describe(found)
    assert "(4 rounds, 3 of them undisturbed)" in text
    assert f"| {FIRST} | 310 / 100 | 3.10 (3.00 to 4.00) | 1.2 / 1.2 | 2.0000 / 2.0000 |" in text
    assert f"| {SECOND} | 310 / 200 | 1.60 (1.50 to 2.00) |" in text


def test_disturbed_rounds_are_not_called_a_comparison() -> None:
    text = describe(result([turns_at({OURS: 300, FIRST: 100}, 1.5)] * 2))
    assert "2 rounds, 0 of them undisturbed: not a fair comparison, as other processes used 1.5 cores" in text
    assert f"| {FIRST} | 300 / 100 | 3.00" in text


def test_by_cpu_time_every_round_counts() -> None:
    rounds = [turns_at({OURS: 300, FIRST: 100}, 1.5)] * 2
    text = describe(Result(TEXT, rounds[0], rounds, {OURS: 1.0, FIRST: 2.0}, by_cpu_time=True))
    assert "(2 rounds, by CPU time)" in text
    assert f"| {FIRST} | 600 / 200 | 3.00" in text
    assert run.Rounds(least=1, wanted=2, limit=float("inf"), by_cpu_time=True).are_enough(rounds)


def test_erniekit_alone_has_a_line() -> None:
    assert "erniekit: 250 tokens/s (200 to 300), 1.2 GiB, mean loss 2.0000" in describe(
        result([turns_at({OURS: 200}), turns_at({OURS: 300})])
    )


def test_another_loss_is_reported() -> None:
    rounds = [turns_at({OURS: 300, FIRST: 100}, loss=2.0)]
    assert result(rounds).disagreements() == []
    rounds[0][FIRST] = Turn([Step(100, 2.01)], 1.0, 1.0, 0.0)
    (problem,) = result(rounds).disagreements()
    assert problem == (
        f"text-full: the mean loss of {FIRST!r} is 2.01000, erniekit's 2.00000; they may differ by 0.1%"
    )


def test_rounds_end_with_enough_quiet_ones_or_with_the_time() -> None:
    quiet, loud = turns_at({OURS: 1.0}), turns_at({OURS: 1.0}, 1.0)
    rounds = run.Rounds(least=2, wanted=2, limit=float("inf"))
    assert [rounds.are_enough(done) for done in ([quiet], [quiet, loud], [quiet, loud, quiet])] == [
        False,
        False,
        True,
    ]
    assert run.Rounds(least=2, wanted=2, limit=0.0).are_enough([loud, loud])


def test_a_process_takes_its_turns(tmp_path: Path) -> None:
    side = Side("one", [sys.executable, "-c", SIDE], run.COMMON, tmp_path / "log")
    side.wait_ready()
    turn = side.turn(3)
    assert turn.steps == [Step(10, 2.5)] * 3
    assert turn.tokens == 30 and 0 < turn.seconds < 60
    assert 0.001 < side.peak_gib() < 1
    side.close()
    assert (tmp_path / "log").read_text() == "a line of a library\n"


def test_a_process_that_dies_is_named_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    side = Side("two", [sys.executable, "-c", "raise ValueError('no such model')"], {}, log)
    with pytest.raises(
        SideError, match=r"two ended with status 1: ValueError: no such model \(all of it: .*log\)"
    ):
        side.wait_ready()


class CountedTurns(Turns):
    """Some steps without pipes."""

    def __init__(self, count: int) -> None:
        self.steps: list[Step] = []
        self._count = count

    def ready(self) -> bool:
        return True

    def step_done(self, tokens: int, loss: float) -> bool:
        self.steps.append(Step(tokens, loss))
        return len(self.steps) < self._count


def prepared(workload: Workload, directory: Path) -> list[Step]:
    """Everything that the sides share, and the first two steps of erniekit's."""
    prepare.prepare(quick(workload), directory)
    turns = CountedTurns(2)
    with ExitStack() as stack, pytest.raises(SystemExit):
        trainer = prepare.make_trainer(load_config(directory / prepare.CONFIG, []), stack)
        trainer.hooks = [*trainer.hooks, TurnHook(turns)]
        trainer.train(stack.enter_context(InterruptGuard()))
    return turns.steps


@pytest.mark.slow
@pytest.mark.parametrize("name", [workload.name for workload in WORKLOADS])
def test_the_loop_by_hand_has_the_first_loss_of_erniekit(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("trl")
    from tools.bench.peers import packed, peer, peer_dpo, peer_sft, peer_vl

    torch.set_num_threads(1)
    workload = next(found for found in WORKLOADS if found.name == name)
    steps = prepared(workload, tmp_path / name)
    rows = peer.load_rows(tmp_path / name)
    assert [len(row["input_ids"]) for row in rows[:2]] == [step.tokens for step in steps]
    assert len(rows) == quick(workload).rows
    directory = tmp_path / name / prepare.TRANSFORMERS
    with torch.no_grad():
        if name == "vl-lora":
            model = peer_vl.load_base(directory, packed.BY_DOCUMENT)
            loss = peer_vl.loss_of(model, False, rows[0])
            documents = peer_vl.documents_of(rows[0], model.config.image_token_id)
            batch = peer_vl.padded(documents, model.config.image_token_id)
            padded = peer_vl.load_base(directory, "sdpa")(**batch).loss
            assert padded.item() == pytest.approx(steps[0].loss, rel=1e-5)
        else:
            module = peer_dpo if name == "dpo-lora" else peer_sft
            model = module.load_model(tmp_path / name, packed.BY_DOCUMENT)
            loss = module.loss_of(model, False, rows[0])
    assert loss.item() == pytest.approx(steps[0].loss, rel=1e-5)


def test_what_is_prepared_is_kept_until_the_workload_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(prepare, "write_samples", lambda *_: made.append("data"))
    for name in ("create_model", "load_config", "write_first_adapter", "write_rows", "config_text"):
        monkeypatch.setattr(prepare, name, lambda *_, **__: made and "")
    monkeypatch.setattr(
        prepare, "load_config", lambda *_: type("Config", (), {"lora": type("L", (), {"enabled": False})})
    )
    monkeypatch.setattr(prepare, "config_text", lambda *_: "")
    directory = tmp_path / "text"
    prepare.prepare(TEXT, directory)
    prepare.prepare(TEXT, directory)
    assert made == ["data"]
    prepare.prepare(quick(TEXT), directory)
    assert made == ["data", "data"]


@pytest.mark.slow
@pytest.mark.skipif(not run.PEERS_PYTHON.exists(), reason="the peers' environment is not there (make peers)")
def test_all_sides_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run", "--quick", "--only", "text-full", "--work", str(tmp_path)])
    run.main()
    printed = capsys.readouterr().out
    assert "text-full: full fine-tuning" in printed
    assert all(f"| {peer.name} |" in printed for peer in TEXT.peers if not peer.needs_bf16)
