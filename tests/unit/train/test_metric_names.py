"""The glossary of metrics covers what is logged, and the page is made from it."""

from erniekit.config.choices import BEST_METRICS, METRICS
from erniekit.objectives.pairs import METRIC_DIVISORS
from erniekit.train.metric_names import GROUPS, describe_metric, find_metric
from erniekit.train.metrics_writer import memory
from tools.docs import metrics


def test_names_are_found_by_their_patterns() -> None:
    for name in (*BEST_METRICS, *METRIC_DIVISORS, *(f"eval/{name}" for name in METRICS), *memory()):
        assert find_metric(name) is not None, name
    for name in ("expert_load/text/max", "router/entropy/layer_12/vision", "expert_share/layer_1/text"):
        assert find_metric(name) is not None, name
    for name in (
        "train/los",
        "train/loss/text",
        "router/entropy/layer_x/text",
        "router/entropy/audio/max",
        "",
    ):
        assert find_metric(name) is None, name
        assert describe_metric(name) == ""


def test_a_name_stands_once_in_the_glossary() -> None:
    names = [metric.name for group in GROUPS for metric in group.metrics]
    assert len(set(names)) == len(names)


def test_the_page_is_made_from_the_glossary() -> None:
    assert metrics.TARGET.read_text(encoding="utf-8") == metrics.document()
    for group in GROUPS:
        for metric in group.metrics:
            assert f"| `{metric.name}` |" in metrics.document()
