"""The section `eval`."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from erniekit.config import choices
from erniekit.config.section import NotNegative, Positive, Section, Text, Weight, as_list


class EvalConfig(Section):
    """Evaluations on data.eval while a model is trained, every train.eval_every steps and at the end.

    The loss is always computed. `erniekit eval run.yaml` takes metrics and how answers are generated from here.
    """

    samples: NotNegative = Field(
        0,
        description="Chats of data.eval that the model answers in each evaluation, the same ones each time, drawn from "
        "all of them; of a preference pair the chosen answer is the reference. 0: none.",
    )
    metrics: Annotated[list[choices.Metric], Field(min_length=1), BeforeValidator(as_list)] = Field(
        ["auto"],
        description="What answers are scored by, as `erniekit eval --metrics` says. auto: what fits the references; "
        "exact_match is always there.",
    )
    max_new_tokens: Positive = Field(64, description="Tokens at which an answer is cut off.")
    temperature: Weight = Field(
        0.0, description="0: the most probable token always; above: drawn, the same way each time."
    )
    batch: Positive = Field(32, description="Answers that are generated at one time, by each process.")
    best_metric: Text | None = Field(
        None,
        description="The figure by which the best checkpoint is known: eval/loss, eval/rewards/accuracy or "
        "eval/rewards/margin with task dpo, or one of the metrics, such as eval/exact_match. A checkpoint is saved "
        "whenever it is best, kept beside the newest ones, and RUN/best means it. null: none is kept.",
    )
    patience: Positive | None = Field(
        None,
        description="Evaluations in a row without a better best_metric after which the run ends. null: never.",
    )
    min_delta: Weight = Field(
        0.0, description="With patience: what is better by no more than this counts as no better."
    )
