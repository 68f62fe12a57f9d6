"""Preference training on a small vision-language model: it learns, and the reference stays what it was."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from erniekit.checkpoint.weights import load_model
from erniekit.config import Config
from erniekit.data.encode.encoder import Encoder, make_encoder
from erniekit.data.encode.samples import SampleReader, pair_mode
from erniekit.data.encode.stats import ErrorBudget
from erniekit.data.load.batch import PackedBatch
from erniekit.data.load.loader import load_row
from erniekit.data.load.mixture import Mixture
from erniekit.data.load.rows import StoredRows
from erniekit.data.media.item import decode
from erniekit.data.store.dataset import Dataset, SourceFiles, load_source
from erniekit.distributed.context import DistributedContext
from erniekit.distributed.mesh import local_mesh
from erniekit.errors import DataError
from erniekit.evaluation.evaluator import evaluate_pairs
from erniekit.lora.layers import LoraLinear
from erniekit.objectives.dpo import DpoObjective
from erniekit.objectives.pairs import pair_means
from erniekit.objectives.reference_model import ReferenceModel
from erniekit.objectives.totals import StepTotals, count_pairs, count_rows
from erniekit.train.build import build_optimizer
from erniekit.train.build_dpo import build_dpo_objective, build_reference
from erniekit.train.metrics import MetricsAccumulator, StepMetrics
from erniekit.train.model import PreparedModel, prepare_model
from erniekit.train.reference_model import cached_reference
from tests.closeness import MODEL, assert_close, relative_difference
from tests.integration.training_setup import COLOURS, chats, image_uri, make_config, write_chats


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions about colours, of which long answers are preferred."""
    samples = []
    for number, sample in enumerate(chats(12)):
        question, answer = sample["messages"]
        other = list(COLOURS)[number % 4]
        samples.append(
            {"messages": [question], "chosen": answer, "rejected": f"Say {other}, number {number}."}
        )
    return write_chats(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", samples)


class Run:
    """The parts of a run with task dpo, put together in one process."""

    def __init__(self, tmp_path: Path, model: Path, data: Path, **settings: Any) -> None:
        defaults = {"task": "dpo", "data__cache_dir": str(tmp_path / "cache"), "data__workers": 0}
        self.config: Config = make_config(tmp_path / "run", model, data, **defaults | settings)
        self.said: list[str] = []
        self.encoder: Encoder = make_encoder(model)
        limits = self.config.data
        reader = SampleReader(
            self.encoder,
            limits.max_length,
            limits.on_long,
            pairs=pair_mode(self.config.task, self.config.data.share_prompt),
        )
        budget = ErrorBudget(limits.on_error, limits.max_errors, limits.on_long)
        budget.on_skip = lambda error: self.said.append(f"skipped: {error}")
        source = load_source(SourceFiles.of(str(data)), reader, budget, tmp_path / "cache")
        self.dataset = Dataset((source,), self.encoder.media_spec, budget)
        self.prepared: PreparedModel = prepare_model(
            self.config, "float32", self.encoder.image_spec, None, self.said.append
        )
        paddle.seed(0)

    def objective(self) -> DpoObjective:
        model = self.prepared.model
        reference = build_reference(
            self.config,
            model,
            "float32",
            [self.dataset],
            self.load_base,
            self.said.append,
            DistributedContext(local_mesh()),
        )
        return build_dpo_objective(self.config, model, reference)

    def load_base(self) -> Any:
        return load_model(self.config.model.path)

    def rows(self) -> Iterator[PackedBatch]:
        rows = StoredRows(
            self.dataset, Mixture("concat", "first_exhausted", (1.0,), False, 0), self.config.data.max_length
        )
        for documents in rows.once():
            yield load_row(documents, self.encoder.media_spec)

    def train(self, steps: int) -> list[dict[str, float]]:
        """The figures of each step over all pairs."""
        objective, optimizer = self.objective(), build_optimizer(self.config, self.prepared)
        batches = list(self.rows())
        _, loss_tokens, text, vision = count_rows(batches).tolist()
        totals = StepTotals(loss_tokens, 1, (text, vision), *count_pairs(batches).tolist())
        self.prepared.model.train()
        found = []
        for _ in range(steps):
            sums: dict[str, float] = {}
            loss = 0.0
            for batch in batches:
                output = objective(batch, totals)
                output.total.backward()
                optimizer.collect_gradients()
                loss += float(output.loss_sum)
                for name, value in output.pairs.sums().items():
                    sums[name] = sums.get(name, 0.0) + value
            optimizer.step(self.config.optimizer.learning_rate)
            optimizer.clear_gradients()
            window = MetricsAccumulator()
            window.add(StepMetrics(loss, loss_tokens, text + vision, 1000, 0.0, 1.0, 0.0, pair_sums=sums))
            found.append(window.scalars())
        return found


LORA = {"lora__enabled": True, "lora__dropout": 0.1}


@pytest.mark.parametrize("lora", [True, False])
def test_twenty_steps_teach_a_preference(tmp_path: Path, model: Path, pairs: Path, lora: bool) -> None:
    settings = LORA | {"optimizer__learning_rate": 3e-3} if lora else {}
    # A few long rows a step, since each step is over all pairs.
    run = Run(tmp_path, model, pairs, **settings, data__max_length=320)
    before = evaluate_pairs(run.prepared.model, run.objective(), run.rows())
    assert_close(before["eval/loss"], np.log(2), MODEL)
    assert_close(before["eval/rewards/margin"], 0, scale=abs(before["eval/logps/chosen"]))
    steps = run.train(20)
    assert len(list(run.rows())) > 1
    assert set(steps[0]) > {
        "train/loss", "rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy",
        "logps/chosen", "logps/rejected", "logps/kl",
    }  # fmt: skip
    assert steps[-1]["rewards/accuracy"] == 1.0
    assert steps[-1]["rewards/margin"] > 1.0 + steps[0]["rewards/margin"]
    assert steps[-1]["train/loss"] < 0.4 < 0.65 < steps[0]["train/loss"]
    # What is held out here was trained on; the reference has not moved with the policy.
    after = evaluate_pairs(run.prepared.model, run.objective(), run.rows())
    assert after["eval/rewards/accuracy"] == 1.0
    assert after["eval/loss"] < 0.4


def test_the_reference_of_adapters_is_the_base_and_leaves_no_trace(
    tmp_path: Path, model: Path, pairs: Path
) -> None:
    run = Run(tmp_path, model, pairs, **LORA, lora__train_router=True, optimizer__learning_rate=1e-2)
    base = ReferenceModel(run.load_base(), 64)
    base.model.image_mean, base.model.image_std = run.prepared.model.image_mean, run.prepared.model.image_std
    run.train(2)
    policy = run.prepared.model
    reference = run.objective().reference
    assert reference is not None
    values = {name: parameter.numpy().copy() for name, parameter in policy.named_parameters()}
    for batch in run.rows():
        first, second = reference(batch), reference(batch)
        assert first.stop_gradient
        np.testing.assert_array_equal(first.numpy(), second.numpy())  # no dropout
        assert_close(first, base(batch), MODEL)
        moved = ReferenceModel(policy, 64)(batch).numpy()
        assert relative_difference(moved, first) > 1e-3
    assert policy.training
    assert all(layer.active for layer in policy.sublayers() if isinstance(layer, LoraLinear))
    for name, parameter in policy.named_parameters():
        np.testing.assert_array_equal(parameter.numpy(), values[name], err_msg=name)
    assert any("gate" in name and not p.stop_gradient for name, p in policy.named_parameters())


def test_both_forms_of_a_pair_train_alike(tmp_path: Path, model: Path, pairs: Path) -> None:
    curves = []
    for share in (True, False):
        run = Run(tmp_path / str(share), model, pairs, data__share_prompt=share, data__max_length=256)
        curves.append((run.train(3), sum(len(batch.input_ids) for batch in run.rows())))
    (shared, fewer), (separate, more) = curves
    assert fewer < 0.8 * more
    for one, other in zip(shared, separate, strict=True):
        for name in ("train/loss", "rewards/margin", "logps/chosen", "logps/rejected"):
            # The first two are made from differences of the others.
            assert_close(one[name], other[name], MODEL, scale=abs(other["logps/chosen"]), what=name)


@pytest.mark.parametrize("lora", [True, False])
def test_a_cached_reference_is_the_live_one(tmp_path: Path, model: Path, pairs: Path, lora: bool) -> None:
    # Without dropout, of which the two draw different numbers.
    settings = LORA | {"lora__dropout": 0.0} if lora else {}
    live = Run(tmp_path, model, pairs, **settings).train(3)
    run = Run(tmp_path, model, pairs, **settings, dpo__reference="cached")
    assert run.objective().reference is cached_reference
    assert run.said[-1] == "reference: log-probabilities of 12 pairs computed, 0 cached before"
    again = Run(tmp_path, model, pairs, **settings, dpo__reference="cached")
    cached = again.train(3)
    assert again.said[-1] == "reference: log-probabilities of 0 pairs computed, 12 cached before"
    for one, other in zip(live, cached, strict=True):
        for name in ("train/loss", "rewards/margin", "logps/chosen"):
            assert_close(one[name], other[name], MODEL, scale=abs(other["logps/chosen"]), what=name)


def test_an_interrupted_cache_goes_on(
    tmp_path: Path, model: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, model, pairs, dpo__reference="cached")
    calls = 0
    real: Callable[..., Any] = ReferenceModel.__call__

    def failing(self: ReferenceModel, batch: PackedBatch) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(ReferenceModel, "__call__", failing)
    with pytest.raises(KeyboardInterrupt):
        run.objective()
    monkeypatch.setattr(ReferenceModel, "__call__", real)
    run = Run(tmp_path, model, pairs, dpo__reference="cached")
    run.objective()
    words = run.said[-1].split()
    computed, known = int(words[3]), int(words[6])
    assert 0 < computed < 12 and computed + known == 12
    whole = Run(tmp_path / "other", model, pairs, dpo__reference="cached")
    whole.objective()
    for index in range(12):
        assert_close(run.dataset.document(index).reference, whole.dataset.document(index).reference, MODEL)


def test_a_damaged_image_is_skipped_and_loads_no_reference_again(tmp_path: Path, model: Path) -> None:
    samples: list[dict[str, Any]] = []
    for name in ("whole", "damaged"):
        file = tmp_path / f"{name}.png"
        file.write_bytes(base64.b64decode(image_uri((255, 0, 0), 0).split(",")[1]))
        content = [
            {"type": "image_url", "image_url": {"url": str(file)}},
            {"type": "text", "text": "Colour?"},
        ]
        question = {"role": "user", "content": content}
        answer = {"role": "assistant", "content": "Red."}
        samples.append({"messages": [question], "chosen": answer, "rejected": "Blue."})
    # Its size can still be read.
    file.write_bytes(file.read_bytes()[:2000])
    data = write_chats(tmp_path / "pairs.jsonl", samples)
    settings: dict[str, Any] = {"dpo__reference": "cached", "data__on_error": "skip"}

    def reference_lines() -> list[str]:
        run = Run(tmp_path, model, data, **settings)
        run.objective()
        return [line for line in run.said if line.startswith(("reference:", "skipped:"))]

    first, *later = reference_lines(), *reference_lines()
    skipped, loading, computed = first
    assert loading.startswith("reference: loading a frozen copy")
    assert skipped.startswith("skipped: ") and "damaged.png" in skipped
    assert computed.endswith("of 1 pair computed, 0 cached before; 1 pair cannot be read")
    assert later == [
        skipped,
        "reference: log-probabilities of 0 pairs computed, 1 cached before; 1 pair cannot be read",
    ]
    settings["data__on_error"] = "raise"
    with pytest.raises(DataError, match=r"damaged\.png"):
        reference_lines()


def test_another_model_has_a_cache_of_its_own(tmp_path: Path, model: Path, pairs: Path) -> None:
    from erniekit.train.reference_model import model_key

    other = tmp_path / "model"
    other.mkdir()
    for file in model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    keys = {model_key(*one) for one in ((model, "float32", 9), (model, "bfloat16", 9), (other, "float32", 9))}
    assert model_key(model, "float32", 10) not in keys
    assert model_key(model, "float32", 9, "int4") not in keys
    assert len(keys) == 3
    assert model_key(model, "float32", 9) in keys


def test_pairs_that_were_not_computed_are_an_error(tmp_path: Path, model: Path, pairs: Path) -> None:
    run = Run(tmp_path, model, pairs)
    row = next(run.rows())
    with pytest.raises(DataError, match="start the run again"):
        cached_reference(run.objective().upload(row))


@pytest.mark.parametrize("loss", ["simpo", "orpo"])
def test_losses_without_a_reference(tmp_path: Path, model: Path, pairs: Path, loss: str) -> None:
    run = Run(tmp_path, model, pairs, dpo__loss=loss, data__max_length=320)
    steps = run.train(8)
    assert not any("reference" in line for line in run.said)
    assert steps[-1]["train/loss"] < steps[0]["train/loss"]
    assert steps[-1]["rewards/margin"] > steps[0]["rewards/margin"]
    assert "logps/kl" not in steps[0]
    assert pair_means({"pairs": 0.0}) == {}


def test_data_without_pairs_is_an_error_that_says_so(tmp_path: Path, model: Path, data: Path) -> None:
    with pytest.raises(
        DataError, match=r"train.jsonl:1: a sample of format messages without a rejected answer"
    ):
        Run(tmp_path, model, data)


def test_images_of_a_prompt_are_decoded_once(tmp_path: Path, model: Path, pairs: Path) -> None:
    counts = []
    for share in (True, False):
        run = Run(tmp_path / str(share), model, pairs, data__share_prompt=share, data__max_length=256)
        documents = [run.dataset.document(index) for index in range(len(run.dataset.lengths))]
        counts.append(
            sum(
                len(decode(document.media, document.sample_id, run.encoder.media_spec))
                for document in documents
            )
        )
    assert counts[1] == 2 * counts[0] > 0
