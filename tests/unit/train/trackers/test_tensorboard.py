"""TensorBoard reads what is written, and shows it as meant."""

import io
import time
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.text.text_plugin import text_array_to_html
from tensorboard.util.tensor_util import make_ndarray

from erniekit.train.trackers.layout import Category, Chart
from erniekit.train.trackers.pictures import draw_answer
from erniekit.train.trackers.tensorboard import TENSORBOARD_DIR, TensorBoardTracker
from erniekit.train.trackers.tracker import ShownAnswer

ANSWER = ShownAnswer(
    "a.jsonl:1",
    "Which <digit>?\n<image>",
    "7",
    "It is\n\n| 9 |",
    {"exact_match": 0.0},
    [Image.new("RGB", (40, 30))],
)


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> EventAccumulator:
    run = tmp_path_factory.mktemp("run")
    layout = [
        Category("Loss", (Chart("train/loss", ("train/loss", "eval/loss")),)),
        Category("More", (), closed=True),
    ]
    tracker = TensorBoardTracker(run, layout)
    tracker.log_scalars(1, {"train/loss": 2.0, "expert_load/text/max": 1.5}, None)
    tracker.log_scalars(2, {"train/loss": 1.0}, 0.5)
    tracker.log_text(0, "config", "<pre>a: &lt;b&gt;\n\nc: *d*</pre>")
    tracker.log_answers(2, [ANSWER, ShownAnswer("a.jsonl:2", "Say 1.", "1", "1", {"exact_match": 1.0})])
    tracker.close(failed=False)
    return EventAccumulator(str(run / TENSORBOARD_DIR)).Reload()


def test_scalars_have_descriptions(events: EventAccumulator) -> None:
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 2.0), (2, 1.0)]
    # The loader that TensorBoard uses by default drops descriptions of other classes.
    assert events.SummaryMetadata("train/loss").data_class == DATA_CLASS_SCALAR
    described = events.SummaryMetadata("train/loss").summary_description
    assert "Mean loss over all trained tokens" in described and "Unit: nats." in described
    assert "busiest expert" in events.SummaryMetadata("expert_load/text/max").summary_description


def test_layout_takes_whole_names_only(events: EventAccumulator) -> None:
    (event,) = events.Tensors(layout_metadata.CONFIG_SUMMARY_TAG)
    layout = layout_pb2.Layout.FromString(make_ndarray(event.tensor_proto).item())
    assert [(category.title, category.closed) for category in layout.category] == [
        ("Loss", False),
        ("More", True),
    ]
    (chart,) = layout.category[0].chart
    assert list(chart.multiline.tag) == ["^train/loss$", "^eval/loss$"]


def test_texts_reach_the_page_unchanged(events: EventAccumulator) -> None:
    (event,) = events.Tensors("config")
    shown = text_array_to_html(make_ndarray(event.tensor_proto), True)
    assert "<pre>a: &lt;b&gt;\n\nc: *d*</pre>" in shown
    (event,) = events.Tensors("answers")
    shown = text_array_to_html(make_ndarray(event.tensor_proto), True)
    assert shown.count("<tr>") == 3
    assert "Which &lt;digit&gt;? ⏎ &lt;image&gt;" in shown and "It is ⏎  ⏎ | 9 |" in shown


def test_images_carry_their_answers(events: EventAccumulator) -> None:
    assert [tag for tag in events.Tags()["tensors"] if tag.startswith("answers/")] == ["answers/01"]
    width, height, encoded = make_ndarray(events.Tensors("answers/01")[0].tensor_proto)
    image = Image.open(io.BytesIO(encoded))
    assert image.size == (int(width), int(height))
    assert events.SummaryMetadata("answers/01").summary_description == "a.jsonl:1"


def test_long_answers_and_other_scripts_are_drawn() -> None:
    for text in ("", "word " * 200, "x" * 900, "\u4e03\u0000", "a\nb"):
        answer = ShownAnswer(
            "a:1", "", text, text, {}, [Image.new("RGB", (300, 10)), Image.new("RGB", (90, 20))]
        )
        assert draw_answer(answer).width > 390


@pytest.mark.parametrize("change", [0.0, -7200.0, 7200.0], ids=["same second", "set back", "set ahead"])
def test_a_run_that_starts_again_hides_the_earlier_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: float
) -> None:
    """Whatever has become of the clock, such as on another machine."""
    now = time.time()
    for start_step in (0, 1):
        monkeypatch.setattr(time, "time", lambda by=change * start_step: now + by)
        tracker = TensorBoardTracker(tmp_path, start_step=start_step)
        for step in range(start_step + 1, 4):
            tracker.log_scalars(step, {"train/loss": float(10 * start_step + step)}, None)
        # Events can be seen at once, although the clock is not advancing.
        seen = EventAccumulator(str(tmp_path / TENSORBOARD_DIR)).Reload().Scalars("train/loss")
        assert seen[-1].value == 10 * start_step + 3
        tracker.close(failed=False)
    found = EventAccumulator(str(tmp_path / TENSORBOARD_DIR)).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in found] == [(1, 1.0), (2, 12.0), (3, 13.0)]
