import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.config.choices import Mix
from erniekit.data.encode.encoder import Encoder
from erniekit.data.encode.samples import SampleReader
from erniekit.data.encode.stats import ErrorBudget
from erniekit.data.encode.workers import Workers
from erniekit.data.formats.fields.columns import Columns
from erniekit.data.load.loader import RowLoader
from erniekit.data.load.mixture import Mixture
from erniekit.data.load.stream import StreamedRows
from erniekit.data.store.dataset import SourceFiles
from erniekit.errors import DataError
from tests.unit.data.helpers import data_uri, noise, qa, write_json, write_lines


def stream(
    encoder: Encoder,
    *sources: Path,
    mix: Mix = "concat",
    weights: tuple[float, ...] | None = None,
    shuffle: bool = True,
    seed: int = 3,
    buffer: int = 16,
    max_length: int = 120,
    budget: ErrorBudget | None = None,
    workers: int = 0,
    columns: Columns = (),
    on_notice: Callable[[str], None] | None = None,
) -> RowLoader:
    files = [SourceFiles.of(str(source), columns=columns) for source in sources]
    reader = SampleReader(encoder, max_length, "error")
    budget = budget or ErrorBudget("raise", 0)
    pool = Workers(workers, encoder.media_spec, reader)
    mixture = Mixture(mix, "first_exhausted", weights or (1.0,) * len(files), shuffle, seed)
    rows = StreamedRows(files, reader, mixture, budget, pool, buffer=buffer, on_notice=on_notice)
    return RowLoader(rows, budget, pool)


def lines(path: Path, name: str, count: int, first: int = 0) -> Path:
    return write_lines(path, [qa(f"{name} {number}") for number in range(first, first + count)])


def drawn(loader: RowLoader, samples: int) -> list[str]:
    """Names of at least that many samples: rows are taken whole."""
    names: list[str] = []
    while len(names) < samples:
        names += [name.rsplit("/", 1)[1] for name in loader.next_row().sample_ids]
    return names


def test_every_sample_once_a_pass(text_encoder: Encoder, tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", "a", 40), lines(tmp_path / "b.jsonl", "b", 24)
    loader = stream(text_encoder, tmp_path)
    names = drawn(loader, 64)
    assert loader.epoch == 1  # 64 samples are 4 buffers of 16
    assert Counter(names) == Counter(
        [
            *(f"a.jsonl:{number + 1}" for number in range(40)),
            *(f"b.jsonl:{number + 1}" for number in range(24)),
        ]
    )
    # Mixed within a buffer, in order from buffer to buffer.
    assert names[:16] != sorted(names[:16])
    assert set(names[:16]) == {f"a.jsonl:{number + 1}" for number in range(16)}
    assert set(drawn(loader, 64)) == set(names)


def test_without_shuffling_the_order_is_that_of_the_files(text_encoder: Encoder, tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", "a", 12)
    loader = stream(text_encoder, tmp_path / "a.jsonl", shuffle=False, buffer=4, max_length=18)
    assert [len(loader.next_row().sample_ids) for _ in range(12)] == [1] * 12
    assert drawn(loader, 12) == [f"a.jsonl:{number + 1}" for number in range(12)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "workers"), [("jsonl", 0), ("jsonl", 2), ("json", 0), ("csv", 0), ("parquet", 0)]
)
def test_a_stream_goes_on_where_it_stood(
    text_encoder: Encoder, tmp_path: Path, kind: str, workers: int
) -> None:
    """Ids row by row, from any place, in any pass, with any number of workers."""
    path = tmp_path / f"a.{kind}"
    items = [{"query": f"what is {number}?", "response": f"it is {number}"} for number in range(50)]
    if kind == "csv":
        path.write_text(
            "query,response\n" + "".join(f"{item['query']},{item['response']}\n" for item in items)
        )
    elif kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(items), path)
    else:
        (write_lines if kind == "jsonl" else write_json)(path, items)
    other = lines(tmp_path / "b.jsonl", "b", 21)
    options: dict[str, Any] = {"mix": "weighted", "weights": (2.0, 1.0), "buffer": 14}
    straight = stream(text_encoder, path, other, **options)
    states, rows = [], []
    while straight.epoch < 3:
        states.append(json.loads(json.dumps(straight.state_dict())))
        rows.append(straight.next_row())
    assert len(rows) > 30
    for index in (0, 1, len(rows) // 2, len(rows) - 4):
        resumed = stream(text_encoder, path, other, workers=workers, **options)
        resumed.load_state_dict(states[index])
        for row, state in zip(rows[index : index + 9], states[index : index + 9], strict=False):
            assert resumed.state_dict() == state
            found = resumed.next_row()
            assert found.sample_ids == row.sample_ids
            np.testing.assert_array_equal(found.input_ids, row.input_ids)
            np.testing.assert_array_equal(found.labels, row.labels)
        resumed.close()


def test_sources_are_mixed_by_weight_or_in_turn(text_encoder: Encoder, tmp_path: Path) -> None:
    a, b = lines(tmp_path / "a.jsonl", "a", 30), lines(tmp_path / "b.jsonl", "b", 7)
    for mix, weights, share in (("weighted", (3.0, 1.0), 0.75), ("interleave", (1.0, 1.0), 0.5)):
        names = drawn(stream(text_encoder, a, b, mix=mix, weights=weights), 320)[:320]  # type: ignore[arg-type]
        assert sum(name.startswith("a") for name in names) / 320 == pytest.approx(share, abs=0.02)
        assert set(name for name in names if name.startswith("b")) == {f"b.jsonl:{n + 1}" for n in range(7)}


def test_wrong_samples_are_counted_as_they_come(text_encoder: Encoder, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [qa("q"), {"x": 1}, qa("r"), {"y": 1}])
    budget = ErrorBudget("skip", 2)
    loader = stream(text_encoder, path, budget=budget, buffer=4)
    drawn(loader, 20)
    assert budget.by_reason() == "unknown format: 2"
    with pytest.raises(DataError, match=r"a\.jsonl:2: "):
        stream(text_encoder, path).next_row()


def test_nothing_that_can_be_used_is_an_end(text_encoder: Encoder, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"x": 1}])
    with pytest.raises(DataError, match="none of 16 samples in a row can be used"):
        stream(text_encoder, path, budget=ErrorBudget("skip", 9)).next_row()


def test_states_that_do_not_fit_are_refused(text_encoder: Encoder, tmp_path: Path) -> None:
    path, other = lines(tmp_path / "a.jsonl", "a", 30), lines(tmp_path / "b.jsonl", "b", 31)
    loader = stream(text_encoder, path)
    loader.next_row()
    state = loader.state_dict()
    with pytest.raises(DataError, match="cannot continue: buffer was 16 and is now 8"):
        stream(text_encoder, path, buffer=8).load_state_dict(state)
    with pytest.raises(DataError, match=r"a\.jsonl is not in data\.train any more, .*b\.jsonl is new in"):
        stream(text_encoder, other).load_state_dict(state)
    with pytest.raises(DataError, match="position is not one in these streamed sources"):
        stream(text_encoder, path).load_state_dict({**state, "place": {"epoch": 0, "row": 1}})
    late = {**state, "place": {**state["place"], "row": 99}}
    resumed = stream(text_encoder, path)
    resumed.load_state_dict(late)
    with pytest.raises(DataError, match="there is no row 99 in buffer 0"):
        resumed.next_row()


def test_images_stream_too(vl_encoder: Encoder, tmp_path: Path) -> None:
    image = {"type": "image", "image": data_uri(noise(56, 84))}
    path = write_lines(
        tmp_path / "a.jsonl", [qa([image, {"type": "text", "text": f"{n}"}]) for n in range(9)]
    )
    row = stream(vl_encoder, path, buffer=9).next_row()
    assert len(row.grid_thw) == len(row.sample_ids) > 1
    assert len(row.patches) == 24 * len(row.grid_thw)


def test_names_of_columns_and_notices_in_a_stream(text_encoder: Encoder, tmp_path: Path) -> None:
    records = [{"asked": f"q {number}", "told": "a", "mood": "blue"} for number in range(40)]
    path = write_lines(tmp_path / "a.jsonl", records)
    notices: list[str] = []
    loader = stream(
        text_encoder, path, columns=(("query", "asked"), ("response", "told")), on_notice=notices.append
    )
    assert len(drawn(loader, 40)) >= 40
    assert notices == [f"note: key 'mood' of a record is not read; the first is {path}:1"]
