from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.stats import ErrorBudget
from erniekit.errors import ErnieKitError, VerifyError
from erniekit.evaluation.report import (
    EvalSettings,
    check_result,
    format_mistakes,
    format_skipped,
    format_summary,
    format_tables,
    report_values,
    write_report,
    writing_predictions,
)
from erniekit.generation.answer import ToolCall
from erniekit.generation.sampling import Sampling
from tests.unit.evaluation.evaluations import BROKEN, answered, evaluation_of

SETTINGS = EvalSettings("runs/x", "ernie", Sampling(64))
TWO = (
    answered("a:1", "seven", "seven", token_f1=1.0, numeric_match=1.0),
    answered("a:2", "seven", "eight", token_f1=0.0),
    answered("b:1", "two 数", "two", token_f1=0.5, ended=False),
)
LOSSES = {"a": (2, 3.0, 6), "b": (1, 9.0, 3)}


def test_losses_and_metrics_are_shown_as_tables() -> None:
    assert format_tables(evaluation_of(*TWO, **LOSSES)) == [
        "",
        "loss  samples  tokens    loss  perplexity",
        "all         3       9  1.3333       3.794",
        "a           2       6  0.5000       1.649",
        "b           1       3  3.0000       20.09",
        "",
        "metrics  answers  exact_match  token_f1  numeric_match",
        "all            3        33.3%     50.0%    100.0% of 1",
        "a              2        50.0%     50.0%    100.0% of 1",
        "b              1         0.0%     50.0%              -",
    ]
    one = answered("a:1", "seven", "seven")
    assert len(format_tables(evaluation_of(one, a=(1, 1.0, 1)))) == 3
    assert format_tables(evaluation_of(one)) == []


def test_the_summary_has_the_lines_that_others_read() -> None:
    result = evaluation_of(*TWO, **LOSSES)
    assert format_summary(result, SETTINGS.sampling) == [
        "1 of 3 answers cut off at 64 tokens",
        "loss 1.3333 over 9 tokens",
        "exact match 1 of 3 (33.3%)",
    ]
    assert format_summary(evaluation_of(TWO[0]), SETTINGS.sampling) == ["exact match 1 of 1 (100.0%)"]


def test_mistakes_are_named() -> None:
    lines = format_mistakes(evaluation_of(*TWO))
    assert lines == [
        "  a:2: expected 'seven', answered 'eight'",
        "  b:1: expected 'two 数', answered 'two' (cut off)",
    ]
    many = format_mistakes(evaluation_of(*[TWO[1]] * 5, answered("a:9", "x" * 99, "")))
    assert len(many) == 4 and many[3] == "  ... and 3 more answers unlike the reference"
    assert format_mistakes(evaluation_of(TWO[0])) == []


def test_skipped_samples_are_listed() -> None:
    budget = ErrorBudget("skip", 100)
    assert format_skipped(budget) == []
    for number in range(5):
        budget.spend(SampleError(f"a:{number}", "missing image" if number else "bad record", "gone"))
    assert format_skipped(budget) == [
        "5 samples skipped (missing image: 4, bad record: 1)",
        "  a:0: gone",
        "  a:1: gone",
        "  a:2: gone",
        "  ... and 2 more",
    ]


def test_too_low_a_metric_is_an_error() -> None:
    result = evaluation_of(*TWO)
    check_result(result, {})
    check_result(result, {"token_f1": 0.5, "numeric_match": 1.0})
    with pytest.raises(VerifyError) as error:
        check_result(result, {"exact_match": 0.9, "token_f1": 0.51, "anls": 0.1})
    assert str(error.value) == (
        "exact match 33.33% is below the minimum 90.00%; token_f1 50.00% is below the minimum 51.00%; "
        "anls applies to none of the references"
    )


def test_the_report_is_json_with_a_schema(tmp_path: Path) -> None:
    budget = ErrorBudget("skip", 100)
    budget.spend(SampleError("a:7", "missing image", "gone"))
    path = tmp_path / "new" / "report.json"
    result = evaluation_of(*TWO, **LOSSES)
    write_report(report_values(result, SETTINGS, budget), path)
    report = json.loads(path.read_text(encoding="utf-8"))
    keys = ["version", "model", "template", "sampling", "pairs", "skipped", "wrong", "differing", "all"]
    keys += ["sources", "modalities"]
    assert list(report) == keys
    assert (report["version"], report["model"], report["template"], report["wrong"]) == (
        2,
        "runs/x",
        "ernie",
        2,
    )
    assert report["sampling"]["max_new_tokens"] == 64 and report["sampling"]["temperature"] == 0
    assert report["skipped"] == {"missing image": 1}
    assert report["sources"]["a"] == {
        "samples": 2,
        "loss": 0.5,
        "loss_tokens": 6,
        "perplexity": pytest.approx(math.exp(0.5)),
        "answers": 2,
        "cut_off": 0,
        "metrics": {
            "exact_match": {"value": 0.5, "samples": 2},
            "token_f1": {"value": 0.5, "samples": 2},
            "numeric_match": {"value": 1.0, "samples": 1},
        },
        "pairs": 0,
        "preference": {},
    }
    assert report["all"]["cut_off"] == 1 and list(report["modalities"]) == ["text"]
    assert report_values(result, EvalSettings("m", "ernie", None), budget)["sampling"] is None


def test_preference_pairs_have_a_table_and_a_line() -> None:
    result = evaluation_of(*TWO, **LOSSES)
    sums = {"rewards/accuracy": 3.0, "rewards/margin": 2.0, "logps/chosen": -8.0, "logps/rejected": -10.0}
    for group in (result.scores.overall, result.scores.sources["a"]):
        group.add_pairs({"pairs": 1.0, **dict.fromkeys(sums, 0.0)})
        group.add_pairs({"pairs": 3.0, **sums})
    lines = format_tables(result)
    start = lines.index("preference  pairs  accuracy  margin  logp chosen  logp rejected")
    assert lines[start + 1].split() == ["all", "4", "75.0%", "0.5", "-2", "-2.5"]
    assert lines[start + 2].split()[0] == "a" and lines[start + 3] == ""
    assert "preference accuracy 75.0% over 4 pairs, margin 0.5" in format_summary(result, None)
    values = report_values(result, EvalSettings("m", "ernie", None, "rewards"), ErrorBudget("skip", 1))
    assert values["pairs"] == "rewards"
    assert values["sources"]["a"]["preference"]["rewards/margin"] == 0.5
    assert values["sources"]["b"]["pairs"] == 0 and values["sources"]["b"]["preference"] == {}


@pytest.mark.parametrize("loss", [1e4, math.nan, math.inf])
def test_a_loss_that_is_no_number_is_null(tmp_path: Path, loss: float) -> None:
    result = evaluation_of(TWO[0], a=(1, loss, 1))
    write_report(report_values(result, SETTINGS, ErrorBudget("raise", 0)), tmp_path / "r.json")
    figures = json.loads((tmp_path / "r.json").read_text())["all"]
    assert figures["perplexity"] is None and (figures["loss"] is None) == (not math.isfinite(loss))
    assert len(format_tables(result)) == 6


def test_answers_are_written_as_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "new" / "answers.jsonl"
    call = ToolCall("add", {"a": "数"}, "", None)
    several = answered(
        "c:1", "", "", calls=(call, BROKEN), expected_calls=(call,), reasoning="so", call_match=0.0
    )
    with writing_predictions(path) as write:
        for _, prediction in (*TWO, several):
            write(prediction)
        assert not path.exists()
    text = path.read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines()]
    assert "数" in text and [record["id"] for record in records] == ["a:1", "a:2", "b:1", "c:1"]
    assert records[3] == {
        "id": "c:1",
        "source": "c",
        "prompt": "User: Which?\nAssistant: ",
        "expected": "",
        "answer": "",
        "ended": True,
        "match": True,
        "right": True,
        "verdict": "right",
        "reasoning": "so",
        "text": "",
        "tool_calls": [
            {"name": "add", "arguments": {"a": "数"}},
            {"name": "add", "arguments": None, "raw": '{"name": "add"', "error": "cut off"},
        ],
        "expected_tool_calls": [{"name": "add", "arguments": {"a": "数"}}],
        "metrics": {"exact_match": 1.0, "call_match": 0.0},
    }


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x.json", Path("/proc/x.json")):
        with pytest.raises(ErnieKitError, match=r"x\.json: cannot be written"):
            write_report({}, path)
        with (
            pytest.raises(ErnieKitError, match=r"x\.json: the answers cannot be written"),
            writing_predictions(path),
        ):
            pass
    with pytest.raises(RuntimeError), writing_predictions(tmp_path / "half.jsonl") as write:
        write(TWO[0][1])
        raise RuntimeError
    assert not list(tmp_path.glob("half*"))


@pytest.mark.parametrize("total", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_an_error(total: float) -> None:
    check_result(evaluation_of(*TWO, a=(1, 9999.0, 1)), {})
    with pytest.raises(VerifyError, match=r"the loss is (nan|inf): the model's weights"):
        check_result(evaluation_of(*TWO, a=(1, total, 2)), {})
