"""The report of a run: made from its files alone, complete, and safe with whatever text data and model hold."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from erniekit.config import load_config
from erniekit.config.config import Config
from erniekit.train.report import ReportParts, RunStatus, write_report
from erniekit.train.trackers.layout import run_layout

HOSTILE = "</pre><script>alert(1)</script>\u202e\x1b"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    file = tmp_path / "run.yaml"
    file.write_text(
        "task: dpo\nmodel: {path: m}\ndata: {train: d.jsonl, eval: e.jsonl}\neval: {samples: 2}\n"
    )
    return load_config(file, [f"train.output_dir={tmp_path / 'run'}", "optimizer.learning_rate=3e-4"])


def status(**changes: Any) -> RunStatus:
    values: dict[str, Any] = {
        **{
            "step": 3,
            "total_steps": 9,
            "tokens": 4000,
            "state": "finished",
            "resumes": False,
            "has_best": False,
        },
        **changes,
    }
    return RunStatus(**values)


def write_files(config: Config) -> Path:
    """A log of three steps, and answers after steps 2 and 4."""
    run = Path(config.train.output_dir)
    (run / "eval").mkdir(parents=True)
    lines = []
    for step in (1, 2, 3):
        scalars = {
            "train/loss": 0.7 / step,
            "train/step_seconds": 2.0,
            "train/tokens_per_second": 500.0 * step,
        }
        scalars |= {"rewards/accuracy": 0.25 * step, "rewards/margin": float(step), "memory/peak_gib": 1.5}
        lines.append({"step": step, "time": 0.0, "epoch": 0.5, **scalars})
    lines.insert(2, {"step": 2, "time": 0.0, "eval/loss": 0.5, "eval/rewards/accuracy": 0.875})
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in (2, 4):
        record = {
            **{
                "id": f"e.jsonl:{step}",
                "prompt": HOSTILE,
                "expected": "seven",
                "answer": HOSTILE,
                "ended": False,
            },
            **{"metrics": {"exact_match": 0.0}},
        }
        (run / "eval" / f"step-{step:06d}.jsonl").write_text(json.dumps(record) + "\n")
    return run


def written(config: Config, **changes: Any) -> str:
    parts = ReportParts(config, run_layout(config, None, has_mfu=False), ["data: " + HOSTILE], ["Python 3"])
    return write_report(parts, status(**changes)).read_text(encoding="utf-8")


def test_the_page_shows_curves_answers_settings_and_commands(config: Config) -> None:
    run = write_files(config)
    page = written(config)
    for title in (
        "train/loss",
        "train/tokens_per_second",
        "rewards/accuracy",
        "rewards/margin",
        "memory, GiB",
    ):
        assert f"<b>{title}</b>" in page
    assert "train/gradient_norm" not in page  # was not logged
    assert page.count("<svg") == page.count("</svg>") == 6
    # One line each of train/loss and eval/loss, with the last values.
    assert "train/loss <b>0.2333</b>" in page and "eval/loss <b>0.5</b>" in page
    figures = dict(re.findall(r"<div><dt>([^<]+)</dt><dd>([^<]+)</dd>", page))
    assert figures["steps"] == "3 of 9" and figures["eval accuracy"] == "87.5%"
    assert figures["tokens/s"] == "1,000" and figures["time in steps"] == "0:06"
    assert "learning_rate: 0.0003" in page and "max_grad_norm" not in page
    # Answers after the last step, not those of a later step that a resumed run has yet to reach.
    assert "Answers after step 2" in page and "e.jsonl:2" in page and "e.jsonl:4" not in page
    assert "(cut off)" in page
    assert f"erniekit export {run}" in page and "--resume" not in page


def test_the_page_needs_no_network_and_escapes_text(config: Config) -> None:
    write_files(config)
    page = written(config)
    assert "<script" not in page and "\u202e" not in page and "\x1b" not in page
    assert "&lt;/pre&gt;&lt;script&gt;" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and "@import" not in page and "url(" not in page


def test_an_interrupted_run_names_the_command_to_resume_first(config: Config) -> None:
    run = write_files(config)
    page = written(config, resumes=True, state="interrupted after step 3 of 9", has_best=True)
    commands = page[page.index("<h2>Next</h2>") :]
    assert commands.index(f"erniekit train {run}/config.yaml --resume") < commands.index(
        f"erniekit chat {run}/best"
    )
    assert "interrupted after step 3 of 9" in page


def test_a_run_without_any_line_has_a_page(config: Config) -> None:
    run = Path(config.train.output_dir)
    run.mkdir()
    (run / "log.jsonl").touch()
    page = written(config, step=0, tokens=0)
    assert "<svg" not in page and "0 of 9" in page
