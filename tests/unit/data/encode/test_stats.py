"""Notices about data: counted by kind, with the first place."""

from __future__ import annotations

import json

from erniekit.data.encode.stats import DataStats, Notices


def test_statistics_survive_json() -> None:
    stats = DataStats(samples=3)
    stats.messages.update(["user", "assistant"])
    stats.notices.add(["a", "b"], "f:1")
    stats.notices.add(["b"], "f:2")
    again = DataStats.from_dict(json.loads(json.dumps(stats.as_dict())))
    assert again == stats
    assert again.notices.lines() == ["note: b: 2 samples, the first f:1", "note: a: 1 sample, the first f:1"]


def test_merged_notices_keep_the_first_place() -> None:
    one, other = DataStats(), DataStats()
    one.notices.add(["a"], "f:1")
    other.notices.add(["a", "b"], "g:1")
    one.merge(other)
    assert one.notices.counts == {"a": 2, "b": 1} and one.notices.first == {"a": "f:1", "b": "g:1"}


def test_names_that_differ_in_every_record_do_not_fill_the_memory() -> None:
    notices = Notices()
    for number in range(1000):
        notices.add([f"key '{number}' of a record is not read"], f"f:{number}")
    assert len(notices.counts) == len(notices.first) == 51
    assert notices.counts["more notices"] == 950
