"""`erniekit chat` as a user runs it: in a terminal and with lines from a file, with good and bad input."""

import base64
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.command import erniekit
from tests.integration.training_setup import COLOURS, TRAINED_STEPS, chats, image_uri

ERNIEKIT = Path(sys.executable).with_name("erniekit")
SAMPLES = 12


def _chat(lines: list[str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return erniekit("chat", *arguments, "--threads", "1", stdin="".join(line + "\n" for line in lines))


def test_lines_from_a_file(trained_run: Path, tmp_path: Path) -> None:
    samples = chats(SAMPLES)
    asked = samples[0]["messages"]
    shown = next(
        sample["messages"] for sample in samples if not isinstance(sample["messages"][0]["content"], str)
    )
    url = shown[0]["content"][0]["image_url"]["url"]
    file, saved = tmp_path / "colour.png", tmp_path / "saved.jsonl"
    file.write_bytes(base64.b64decode(url.partition(",")[2]))
    lines = [
        asked[0]["content"],
        "/reset",
        "/image gone.png",
        f"/image {file}",
        "Which colour?",
        f"/save {saved}",
    ]
    result = _chat(lines, trained_run)
    assert (result.returncode, result.stderr) == (0, "")
    out = [line for line in result.stdout.splitlines() if not line.startswith("(prompt")]
    assert f"checkpoint-{TRAINED_STEPS:06d}: template ernie_vl" in out[0]
    assert out[1:] == [
        asked[1]["content"],
        "chat cleared",
        f"error: no such image: {Path.cwd() / 'gone.png'}",
        "attached to the next message (1 in all)",
        shown[1]["content"],
        f"appended to {saved}",
    ]
    # The saved chat is a training sample, on which the model has a low loss already.
    (record,) = [json.loads(line) for line in saved.read_text(encoding="utf-8").splitlines()]
    assert record["messages"][-1] == {"role": "assistant", "content": shown[1]["content"]}
    checked = erniekit("eval", trained_run, "--data", saved)
    assert checked.returncode == 0 and "100.0%" in checked.stdout


def test_sampling_and_tools(trained_run: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([{"name": "colour", "description": "Which colour?"}]))
    options = [
        "--temperature",
        "1.5",
        "--top-p",
        "0.95",
        "--top-k",
        "80",
        "--max-new-tokens",
        "9",
        "--tools",
        tools,
    ]
    options += ["--system", "Say red.", "--repetition-penalty", "1.1", "--stop", "purple"]
    first, again, other = (
        _chat(["Say red.", "/quit"], trained_run, *options, "--seed", str(seed)) for seed in (0, 0, 1)
    )
    for result in (first, again, other):
        assert (result.returncode, result.stderr) == (0, "")
    answers = [re.sub(r"\(prompt.*", "", result.stdout) for result in (first, again, other)]
    assert answers[0] == answers[1] != answers[2]


def test_mistakes_end_it_before_it_begins(trained_run: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ([tmp_path], "holds no model"),
        ([trained_run, "--tools", "gone.json"], "gone.json: cannot be read"),
        ([trained_run, "--top-p", "2"], "top_p must be"),
        ([trained_run, "--system", "a<|end_of_sentence|>"], "contains <|end_of_sentence|>"),
    ):
        result = _chat(["Hello"], *arguments)
        assert result.returncode == 1
        assert (
            result.stderr.startswith("error: ")
            and message in result.stderr
            and "Traceback" not in result.stderr
        )
    assert _chat([], trained_run, "--seed", "x").returncode == 2
    assert _chat([], trained_run, "--temperature", "-1").returncode == 2


def test_a_text_model_is_given_an_image(tmp_path: Path, text_models: dict[str, Path]) -> None:
    file = tmp_path / "colour.png"
    file.write_bytes(base64.b64decode(image_uri(COLOURS["red"], 0).partition(",")[2]))
    result = _chat([f"/image {file}", "Hello"], text_models["tiny-dense"], "--max-new-tokens", "5")
    assert result.returncode == 0
    assert "error: the model does not take images or videos" in result.stdout
    assert "answer 5 tokens" in result.stdout


def test_ctrl_c_ends_an_answer_and_ctrl_d_the_chat(model: Path) -> None:
    leader, follower = pty.openpty()
    # A model with random weights does not end.
    command = [ERNIEKIT, "chat", model, "--max-new-tokens", "100000", "--threads", "1"]
    process = subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, start_new_session=True, env=_in_terminal()
    )
    os.close(follower)
    try:
        _until(leader, "/help lists the commands", "\n.*> ")
        os.write(leader, b"Hello\n")
        # What readline turns off after a line is no answer yet.
        _until(leader, r"Hello\r\n(\x1b\[\?2004l\r)?[^\x1b]")
        process.send_signal(signal.SIGINT)
        seen = _until(leader, r", interrupted\)", "\n.*> ")
        assert "\x1b[2m(prompt" in seen and "Traceback" not in seen
        # readline shows its prompt a moment before it minds signals.
        said = r"\(/quit or Ctrl-D to quit\)"
        _until(leader, said, "\n.*> ", again=lambda: process.send_signal(signal.SIGINT))
        os.write(leader, b"\x04")
        assert process.wait() == 0
    finally:
        process.kill()
        process.wait()
        os.close(leader)


def _in_terminal() -> dict[str, str]:
    return {**os.environ, "TERM": "xterm"}


def _until(leader: int, *marks: str, again: Callable[[], None] = lambda: None) -> str:
    """What the terminal shows until all of these patterns have come up, one after the other.

    again: called at first, and whenever nothing has come up for a second.
    """
    seen, start, deadline = "", 0, time.monotonic() + 1200
    again()
    for mark in marks:
        while (found := re.compile(mark).search(seen, start)) is None:
            assert time.monotonic() < deadline, f"no {mark!r} in {seen[-2000:]!r}"
            if select.select([leader], [], [], 1.0)[0]:
                seen += os.read(leader, 4096).decode(errors="replace")
            else:
                again()
        start = found.end()
    return seen
