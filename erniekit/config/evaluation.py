"""The section `eval`."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from erniekit.config import choices
from erniekit.config.section import NotNegative, Positive, Section, Text, Weight, as_list


class EvalConfig(Section):
    """Evaluation on data.eval during training, every train.eval_every steps and at the end.

    The loss is always computed. `erniekit eval run.yaml` uses the same metrics and generation settings.
    """

    samples: NotNegative = Field(
        0,
        description="Number of chats from data.eval to generate answers for in each evaluation: a random sample, the "
        "same every time. For a preference pair, the reference is the chosen answer. 0: none.",
    )
    metrics: Annotated[list[choices.Metric], Field(min_length=1), BeforeValidator(as_list)] = Field(
        ["auto"],
        description="Metrics for generated answers, as in `erniekit eval --metrics`. auto: the metrics that fit the "
        "references. exact_match is always included.",
    )
    max_new_tokens: Positive = Field(64, description="Maximum number of tokens in a generated answer.")
    temperature: Weight = Field(
        0.0, description="Sampling temperature, with the same seed in every evaluation. 0: greedy decoding."
    )
    batch: Positive = Field(32, description="Answers to generate at a time, per process.")
    best_metric: Text | None = Field(
        None,
        description="Metric that selects the best checkpoint: eval/loss, a metric of generated answers such as "
        "eval/exact_match, or with task dpo eval/rewards/accuracy or eval/rewards/margin. The best checkpoint is kept "
        "in addition to the newest ones, as RUN/best. Needs train.eval_every. null: no best checkpoint.",
    )
    patience: Positive | None = Field(
        None,
        description="Early stopping: end the run after this number of consecutive evaluations without an improvement "
        "of best_metric. null: never.",
    )
    min_delta: Weight = Field(
        0.0, description="With patience: the metric must change by more than this to count as an improvement."
    )
