"""`erniekit verify`: the same logits and answers in Paddle and transformers, and a status that says so."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer

from erniekit.checkpoint.hub import read_array, read_index, write_shards
from erniekit.cli.verify import verify
from erniekit.data.encode.encoder import make_encoder
from erniekit.data.load.loader import load_row
from erniekit.errors import CheckpointError, VerifyError
from erniekit.export import verify as verify_module
from erniekit.export.engines.prompts import make_prompts
from erniekit.export.engines.router_ties import noting_ties
from erniekit.export.export import export_model
from erniekit.export.verify import VerifyOptions, verify_model
from erniekit.generation.load import find_model
from erniekit.models.specs import TensorSpec
from erniekit.moe.layer import MoeLayer
from erniekit.objectives.device_batch import row_inputs
from tests.integration.training_setup import COLOURS, chats, image_uri, make_model, write_chats

REFERENCES = Path(__file__).resolve().parents[3] / "shared" / "reference_models"
NEEDS_SHARED = pytest.mark.skipif(
    not REFERENCES.is_dir(), reason="no ../shared/reference_models beside this clone"
)
PAIRS = [
    ("dense", "ref_dense"),
    ("moe", "ref_moe"),
    ("vl_hub", "ref_vl"),
    ("vl_hub", "ref_vl_video"),
    ("vl_hub", "ref_vl_text"),
    ("vl_hf", "ref_vl"),
    ("vl_hf", "ref_vl_video"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exports by family, and the nested layout of the vision-language model."""
    parent = tmp_path_factory.mktemp("exports")
    found = {}
    for family in ("dense", "moe", "vl"):
        base = make_model(parent / f"base-{family}", f"tiny-{family}")
        found[family] = export_model(base, parent / family).directory
    found["nested"] = export_model(parent / "base-vl", parent / "nested", layout="transformers").directory
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chats(tmp_path_factory.mktemp("data") / "chats.jsonl", chats(5))


@pytest.mark.parametrize("family", ["dense", "moe", "vl", "nested"])
def test_logits_and_answers_are_those_of_transformers(
    models: dict[str, Path], data: Path, tmp_path: Path, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    if family in ("dense", "moe"):
        data = write_chats(tmp_path / "text.jsonl", chats(4, images=False))
    verify(models[family], data=data, samples=3, max_new_tokens=6)
    printed = capsys.readouterr().out
    assert "FAIL" not in printed and printed.endswith("result: ok\n")
    assert "without missing or unexpected weights" in printed
    assert "logits of a prompt with text" in printed
    assert ("logits of a prompt with image" in printed) == (family in ("vl", "nested"))
    assert "3 of 3 greedy answers are the same" in printed


def test_answers_about_a_long_video_are_those_of_transformers(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six token times of two rows and columns: at its own positions transformers answers otherwise."""
    pytest.importorskip("torch")
    model = shutil.copytree(models["nested"], tmp_path / "model")
    file = model / "video_preprocessor_config.json"
    size = {"shortest_edge": 784, "longest_edge": 784 * 4}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"size": size, "draw_on_frames": False}))
    video = [image_uri(colour, seed) for seed, colour in enumerate([*COLOURS.values()] * 3)]
    question = {"role": "user", "content": "<video>Which colour?"}
    messages = [question, {"role": "assistant", "content": "It is red."}]
    data = write_chats(tmp_path / "video.jsonl", [{"messages": messages, "videos": [video]}])
    verify(model, data=data, samples=1, max_new_tokens=8)
    printed = capsys.readouterr().out
    assert "1 of 1 greedy answers are the same" in printed
    assert "note 1 chat has a video with more token times than rows and columns" in printed


def test_a_difference_between_the_two_fails(
    models: dict[str, Path], data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    from erniekit.export import verify_transformers

    def shifted(results: verify_transformers.Results) -> verify_transformers.Results:
        logits, answers = [x * 1.001 for x in results.logits], [[5], *results.answers[1:]]
        return dataclasses.replace(results, logits=logits, answers=answers)

    run = verify_transformers._run_paddle
    monkeypatch.setattr(verify_transformers, "_run_paddle", lambda *inputs: shifted(run(*inputs)))
    with pytest.raises(typer.Exit) as ended:
        verify(models["vl"], data=data, samples=2, max_new_tokens=4)
    assert ended.value.exit_code == 1
    printed = capsys.readouterr().out
    assert "result: FAIL, 5 checks failed" in printed
    assert "1 of 2 greedy answers are the same" in printed and f"{data}:1" in printed


def test_logits_may_part_where_two_experts_are_equally_probable() -> None:
    pytest.importorskip("torch")
    from erniekit.export.verify_transformers import _compare_logits

    theirs = np.ones((4, 3), np.float32)
    ours = theirs * np.array([[1], [1], [1.01], [1.02]], np.float32)

    def compared(tie: int | None) -> tuple[str, str]:
        check = _compare_logits("text", ours, theirs, tie)
        return check.status, check.text.rpartition("(allowed 0.0001)")[2]

    assert compared(None) == compared(0) == ("FAIL", "")
    assert compared(2) == ("ok", " in the first 2 tokens of 4, before two experts are equally probable")
    assert compared(3)[0] == "FAIL"
    same = _compare_logits("text", theirs, theirs, 2)
    assert same.status == "ok" and same.text.endswith("(allowed 0.0001)")


def test_where_two_experts_are_equally_probable(models: dict[str, Path]) -> None:
    model = find_model(models["moe"]).load()
    row = row_inputs(load_row([make_prompts(make_encoder(models["moe"]))[0].document], None))
    gate = next(layer for layer in model.sublayers() if isinstance(layer, MoeLayer)).gate
    weight = gate.weight.numpy()
    for copied, expected in ((False, None), (True, 0)):
        if copied:
            gate.weight.set_value(np.repeat(weight[1:2], len(weight), 0))
        with noting_ties(model) as tie:
            model(row)
        assert tie.position == expected


def test_answers_may_part_where_two_tokens_are_equally_probable() -> None:
    torch = pytest.importorskip("torch")
    from erniekit.export.verify_transformers import Results, _compare_answers, _ties

    steps = [torch.tensor([row]) for row in ([0.0, 5.0, 1.0], [20.0, 1.0, 19.9995], [3.0, 2.9, -9.0])]
    assert _ties(steps) == {1: {0, 2}}
    text = type("Text", (), {"decode_all": lambda self, ids: str(ids)})()
    theirs = [[1, 0, 0]] * 4

    def compared(*ours: list[int]) -> tuple[str, str]:
        check = _compare_answers(["a", "b"], ours, Results([], theirs[:2], [_ties(steps)] * 2), text)
        return check.status, check.text

    same = "greedy answers are the same in Paddle and transformers"
    assert compared([1, 0, 0], [1, 0, 0]) == ("ok", f"2 of 2 {same}")
    tied = f"1 of 2 {same}, 1 diverge where two tokens are equally probable"
    assert compared([1, 0, 0], [1, 2, 5, 7]) == ("ok", tied)
    # Another place, another token, and an answer that ends early.
    for wrong in ([1, 0, 1], [1, 1, 0], [2, 2, 0], [1, 0]):
        status, said = compared(wrong, [1, 2])
        assert status == "FAIL" and said.startswith(f"0 of 2 {tied[7:]}; a: Paddle '{wrong}'")


def test_what_transformers_cannot_load_fails(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from erniekit.export import verify_transformers

    monkeypatch.setattr(
        verify_transformers, "load_in_transformers", lambda *_: (None, {"missing_keys": ["a.weight"]})
    )
    checks = list(verify_transformers.compare_with_transformers(models["dense"]))
    assert [check.status for check in checks] == ["FAIL"]
    assert "a.weight" in checks[0].text


def test_without_torch_it_says_so(
    models: dict[str, Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "has_torch", lambda: False)
    checks = list(verify_model(models["moe"], VerifyOptions()))
    assert all(check.status != "FAIL" for check in checks)
    assert "pip install -e '.[verify]'" in checks[-1].text
    for options in (VerifyOptions(transformers=True), VerifyOptions(data=data)):
        with pytest.raises(VerifyError, match=r"\.\[verify\]"):
            list(verify_model(models["moe"], options))


def test_options_that_cannot_be_followed(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        list(verify_model(tmp_path / "gone", VerifyOptions()))
    with pytest.raises(VerifyError, match="--gradients"):
        list(verify_model(models["dense"], VerifyOptions(gradients=tmp_path)))
    with pytest.raises(VerifyError, match="--no-transformers"):
        list(verify_model(models["dense"], VerifyOptions(data=tmp_path, transformers=False)))


def test_broken_weights_are_found_by_their_shapes(models: dict[str, Path], tmp_path: Path) -> None:
    model = export_model(models["vl"], tmp_path / "out").directory
    tensors = {name: read_array(info) for name, info in read_index(model).items()}
    name = "model.layers.1.mlp.gate.weight_1"
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    specs = [TensorSpec(key, "F32", value.shape) for key, value in tensors.items()]
    write_shards(model, specs, lambda key: tensors[key])
    with pytest.raises(typer.Exit):
        verify(model)
    assert any(name in check.text for check in verify_model(model, VerifyOptions()) if check.status == "FAIL")


def test_engines_in_one_table(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """End tokens do not end the answers."""
    pytest.importorskip("torch")
    model = shutil.copytree(models["nested"], tmp_path / "model")
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(300))}))
    with pytest.raises(typer.Exit):
        verify(model, engine=["transformers", "fastdeploy", "vllm"])
    printed = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(printed) if line.startswith("engine "))
    cells = [line.replace("tool call", "tool-call").split() for line in printed[start + 1 : start + 7]]
    found = [(line[0], *line[-5:-3], line[-1]) for line in cells[:4]]
    kinds = ("text", "tool-call", "image", "video")
    assert [(line[0], line[2], line[3:6], line[-1]) for line in cells[:4]] == [
        ("transformers", kind, ["16", "of", "16"], "ok") for kind in kinds
    ], found
    assert [line[:2] + line[-1:] for line in cells[4:]] == [
        ["fastdeploy", "files", "FAIL"],
        ["vllm", "files", "FAIL"],
    ]
    assert any("vllm: reads the flat config.json" in line for line in printed)
    assert printed[-1] == "result: FAIL, 2 checks failed"


def test_an_engine_that_is_another_model(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Paddle computes the source, the engine the export."""
    pytest.importorskip("torch")
    other = shutil.copytree(models["dense"], tmp_path / "other")
    changed = json.loads((other / "config.json").read_text()) | {"rope_theta": 100.0}
    (other / "config.json").write_text(json.dumps(changed))
    with pytest.raises(typer.Exit):
        verify(models["dense"], source=other, engine=["transformers"])
    assert "log-probabilities differ by" in capsys.readouterr().out


def test_an_engine_that_does_not_exist(models: dict[str, Path]) -> None:
    with pytest.raises(typer.BadParameter, match="'tensorrt' is not one of transformers, vllm"):
        verify(models["dense"], engine=["tensorrt"])


@NEEDS_SHARED
@pytest.mark.parametrize(("model", "reference"), PAIRS)
def test_reference_models(model: str, reference: str, capsys: pytest.CaptureFixture[str]) -> None:
    gradients = REFERENCES / f"{reference}_grads.safetensors"
    verify(
        REFERENCES / model,
        transformers=False,
        reference=REFERENCES / f"{reference}.npz",
        gradients=gradients if gradients.is_file() else None,
    )
    printed = capsys.readouterr().out
    assert "result: ok" in printed
    count = len(json.loads((REFERENCES / model / "model.safetensors.index.json").read_text())["weight_map"])
    assert f"gradients of {count} parameters" in printed
