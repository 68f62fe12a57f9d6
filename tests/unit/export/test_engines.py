"""Comparison with engines: the prompts, the differences, the script in another environment, and the loaders' rules."""

import dataclasses
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from erniekit.config.choices import Engine
from erniekit.data.encode.encoder import make_encoder
from erniekit.data.load.loader import load_row
from erniekit.data.media.patches import patchify
from erniekit.errors import EngineError
from erniekit.export.check import Check
from erniekit.export.engines import process
from erniekit.export.engines.answers import Answer, PaddleAnswer, compare, table
from erniekit.export.engines.faults import fault_notes, head_size_problem, quantized_problem
from erniekit.export.engines.loaders import check_loader
from erniekit.export.engines.process import VLLM, Environment, ask, find_python
from erniekit.export.engines.prompts import Prompt, make_prompts
from erniekit.export.quantized import Quantization
from erniekit.models.config import ErnieConfig
from tests.unit.export.conftest import Copy, change_json


@pytest.fixture(scope="module")
def prompts(models: dict[str, Path]) -> dict[str, Prompt]:
    return {prompt.name: prompt for prompt in make_prompts(make_encoder(models["vl"]))}


def test_the_prompts_of_each_family(models: dict[str, Path], prompts: dict[str, Prompt], copy: Copy) -> None:
    assert list(prompts) == ["text", "tool call", "image", "video"]
    text = make_prompts(make_encoder(models["dense"]))
    assert [prompt.name for prompt in text] == ["text", "tool call"]
    short = copy("dense", max_position_embeddings=len(text[1].document) - 1)
    assert [prompt.name for prompt in make_prompts(make_encoder(short))] == ["text"]


def test_an_engine_sees_the_frames_that_the_model_sees(
    models: dict[str, Path], prompts: dict[str, Prompt]
) -> None:
    spec = make_encoder(models["vl"]).media_spec
    assert spec is not None
    frames = [Image.open(io.BytesIO(frame)) for frame in prompts["video"].videos[0]]
    seen = np.concatenate([patchify(frame, spec.image)[0] for frame in frames])
    assert np.array_equal(seen, load_row([prompts["video"].document], spec).patches)


def answer(tokens: list[int], *logprobs: float) -> Answer:
    return Answer([1, 2, 3], [-1.0, -2.0], tokens, list(logprobs))


def test_differences_between_two_answers(prompts: dict[str, Prompt]) -> None:
    steps = np.full((2, 9), -9.0, np.float32)
    steps[0, [4, 5, 6]] = -0.5, -0.5004, -0.6
    steps[1, 7] = -0.25
    own = PaddleAnswer(answer([4, 7], -0.5, -0.25), steps)

    def compared(found: Answer) -> tuple[str, str, str]:
        row = compare("engine", prompts["text"], own, found, 1e-3)
        return row.status, row.tokens, row.remark

    assert compared(answer([4, 7], -0.5, -0.25)) == ("ok", "2 of 2", "")
    assert compared(answer([5, 1], -0.5004, -1.0)) == (
        "ok",
        "0 of 2",
        "token 1 differs, two are equally probable",
    )
    assert compared(answer([6, 1], -0.6, -1.0)) == ("FAIL", "0 of 2", "token 1 differs")
    status, tokens, remark = compared(answer([4, 7], -0.5, -0.24))
    assert (status, tokens) == (
        "FAIL",
        "2 of 2",
    ) and remark == "log-probabilities differ by 0.01, allowed 0.001"
    nan = compared(dataclasses.replace(own.answer, logprobs=[float("nan"), -0.25]))
    assert nan[0] == "FAIL"
    assert compared(answer([4], -0.5))[1:] == ("1 tokens", "its answer has not 2 tokens")
    assert compared(Answer(error="no room"))[2] == "no room"
    longer = compared(dataclasses.replace(own.answer, input_ids=[1, 2, 3, 3]))
    assert longer[2] == "its processor reads 4 tokens, training 3"
    assert compared(dataclasses.replace(own.answer, input_ids=[1, 2, 4]))[2].endswith(
        "reads other tokens than training"
    )
    # From the second token on, two experts are equally probable: all but the first log-probability may differ.
    tied = dataclasses.replace(own, router_tie=1)
    for found in (answer([4, 7], -0.5, -0.9), answer([6, 1], -0.6, -1.0)):
        row = compare("engine", prompts["text"], tied, found, 1e-3)
        assert (row.status, row.difference) == ("ok", 0.0)
        assert "up to token 1 of prompt and answer: then two experts are equally" in row.remark
    first = dataclasses.replace(own.answer, prompt_logprobs=[-1.1, -2.0])
    assert compare("engine", prompts["text"], tied, first, 1e-3).status == "FAIL"
    assert (
        compare("engine", prompts["text"], tied, own.answer, 1e-3)
        == compare("engine", prompts["text"], own, own.answer, 1e-3)
    )  # fmt: skip
    row = compare("engine 1.0", prompts["text"], own, own.answer, 1e-3)
    assert table([row])[1] == ["engine 1.0", "text", "2 of 2", "0.0e+00", "ok"]


SCRIPT = """
import json, os, sys
from pathlib import Path
request = json.loads(Path(sys.argv[1]).read_text())
assert "PYTHONPATH" not in os.environ and os.environ["HF_HUB_OFFLINE"] == "1"
answers = {}
for prompt in request["prompts"]:
    files = prompt["images"] + [file for video in prompt["videos"] for file in video]
    assert all(Path(file).read_bytes().startswith(b"\\x89PNG") for file in files)
    fields = {"input_ids": prompt["short_ids"], "tokens": [len(files)], "logprobs": [-1.0], "prompt_logprobs": []}
    answers[prompt["name"]] = fields
response = {"engine": "stand-in " + request["family"], "faults": ["router"], "answers": answers}
Path(sys.argv[2]).write_text(json.dumps(response))
"""


def run_script(script: Path, model: Path, prompts: dict[str, Prompt], monkeypatch: Any) -> process.Response:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    environment = Environment("stand-in", "nowhere", str(script))
    return ask(
        environment,
        Path(sys.executable),
        model,
        list(prompts.values()),
        tokenizer=model,
        family="vl",
        max_new_tokens=4,
    )


def test_the_script_of_an_environment(
    models: dict[str, Path], prompts: dict[str, Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    response = run_script(script, models["vl"], prompts, monkeypatch)
    assert response.engine == "stand-in vl" and response.faults == ("router",)
    assert [response.answers[name].tokens for name in prompts] == [[0], [0], [1], [4]]
    whole = prompts["image"].document
    (item,) = whole.media
    short = response.answers["image"].input_ids
    assert len(short) == len(whole) - item.tokens + 1
    assert short[: item.start] == whole.input_ids[: item.start].tolist()
    assert short[item.start + 1 :] == whole.input_ids[item.start + item.tokens :].tolist()


def test_a_script_that_fails(
    models: dict[str, Path], prompts: dict[str, Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('no kernel for this head size')")
    with pytest.raises(EngineError, match=r"exit status 1.*\n.*no kernel for this head size"):
        run_script(script, models["vl"], prompts, monkeypatch)


def test_where_the_python_of_an_engine_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=r"--engine-python .*: no such file"):
        find_python(VLLM, tmp_path / "python")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process, "_CHECKOUT", tmp_path)
    with pytest.raises(EngineError, match="`make engines ENGINES=vllm`"):
        find_python(VLLM, None)
    python = tmp_path / VLLM.folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert find_python(VLLM, None) == python


def loader(engine: Engine, directory: Path) -> list[Check]:
    return list(check_loader(engine, directory, ErnieConfig.from_dir(directory)))


RULES: list[tuple[Engine, str, dict[str, Any], str, str]] = [
    ("vllm", "vl", {}, "FAIL", "no processing_*.py"),
    ("sglang", "dense", {}, "note", "Ernie4_5_ForCausalLM"),
    ("fastdeploy", "vl", {}, "FAIL", "no auto_map"),
    ("fastdeploy", "vl", {}, "note", "takes every token id from im_patch_id"),
    ("vllm", "dense", {"torch_dtype": None, "dtype": "float32"}, "FAIL", "paddle layout"),
]


@pytest.mark.parametrize(("engine", "family", "changes", "status", "words"), RULES)
def test_rules_of_loaders(
    copy: Copy, engine: Engine, family: str, changes: dict[str, Any], status: str, words: str
) -> None:
    directory = copy(family, **changes)
    assert any(check.status == status and words in check.text for check in loader(engine, directory))


def test_files_that_loaders_need(copy: Copy) -> None:
    directory = copy("moe")
    for name in ("tokenizer.model", "chat_template.jinja"):
        (directory / name).unlink(missing_ok=True)
    change_json(directory / "tokenizer_config.json", chat_template=None)
    assert any("tokenizer.model" in check.text for check in loader("fastdeploy", directory))
    assert any("chat template" in check.text for check in loader("sglang", directory))


def test_faults_are_named_with_what_to_do(models: dict[str, Path]) -> None:
    (note,) = fault_notes(("router",), True)
    assert note.status == "note" and "ignores e_score_correction_bias" in note.text
    assert "function replaced" in note.text and "Workaround: serve on GPUs" in note.text
    assert "compared as it is" in fault_notes(("rotary",), False)[0].text
    config = ErnieConfig.from_dir(models["dense"])
    assert head_size_problem(dataclasses.replace(config, head_dim=128)) is None
    assert "heads of 20" in str(head_size_problem(dataclasses.replace(config, head_dim=20)))


def test_quantized_exports_that_vllm_cannot_serve_on_cpus(models: dict[str, Path]) -> None:
    dense, moe, vl = (ErnieConfig.from_dir(models[family]) for family in ("dense", "moe", "vl"))
    int4, int8 = Quantization(4, 32), Quantization(8)
    assert quantized_problem("vllm", dense, None) is None and quantized_problem("vllm", moe, None) is None
    assert (
        quantized_problem("vllm", dense, int4) is None
        and quantized_problem("transformers", moe, int8) is None
    )
    assert "weights of 8 bits" in str(quantized_problem("vllm", dense, int8))
    assert "or with --engine transformers" in str(quantized_problem("vllm", moe, int4))
    assert str(quantized_problem("vllm", vl, int4)).endswith("verify it on a GPU")
    assert "does not load" in str(quantized_problem("transformers", vl, int4))
