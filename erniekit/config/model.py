"""The sections `model` and `lora`."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr

from erniekit.config import choices
from erniekit.config.section import PathText, Positive, Section, Text, TextList, as_list


class ModelConfig(Section):
    """The checkpoint to start from."""

    path: PathText = Field(
        description="Directory of the checkpoint, in any layout and relative to the working directory, or a repository "
        "of the Hugging Face Hub, such as baidu/ERNIE-4.5-0.3B-PT. A directory of that name takes precedence. A "
        "repository is downloaded to the Hub's cache (HF_HOME) on first use; `erniekit download` updates it."
    )
    revision: Text | None = Field(
        None,
        description="Branch, tag or commit of a Hub repository. null: the main branch. The run's config.yaml records "
        "the commit, and a resumed run uses it.",
    )
    dtype: choices.Dtype = Field(
        "auto", description="Compute dtype. auto: bfloat16 on a GPU, float32 on a CPU."
    )
    quantize: choices.Quantize = Field(
        "none",
        description="Quantize the frozen weights under LoRA adapters (QLoRA) while they are loaded. int8 and int4 "
        "apply to the linear layers of the decoder, including all experts; routers, norms, embeddings, output layer, "
        "vision tower and resampler keep model.dtype. An export merges the adapters into the checkpoint's original "
        "weights.",
    )
    resize_vocab: bool = Field(
        False,
        description="Add embedding and output rows for tokens that were added to the tokenizer, rounded up to a "
        "multiple of 64. New rows start as the mean of the existing rows. With LoRA, both matrices are trained and "
        "saved in full.",
    )
    max_position_embeddings: Positive | None = Field(
        None,
        description="Raise the checkpoint's position limit, to train on longer documents. Positions are not "
        "interpolated; checkpoints and exports state the new limit in config.json. null: the checkpoint's limit. A "
        "document over the limit is treated as one longer than data.max_length.",
    )
    freeze: TextList = Field(
        [],
        description="Parts to freeze: vision, resampler, language, router, or fnmatch patterns over parameter "
        "names.",
    )
    _directory: Path | None = PrivateAttr(None)

    @property
    def directory(self) -> Path:
        """The directory of the checkpoint: of a repository of the Hub after `located`, else `path`."""
        return self._directory or Path(self.path)

    def located(self, directory: Path, commit: str | None) -> Self:
        """A copy with its files in a directory; commit: of its repository on the Hub, as its revision."""
        found = self.model_copy(update={"revision": commit})
        found._directory = directory
        return found


def _as_targets(value: Any) -> Any:
    """A string as a list; expands `all` and `all-linear` (PEFT's name) to module names."""
    listed = as_list(value)
    if not isinstance(listed, list):
        return listed
    named: list[Any] = []
    for item in listed:
        named += choices.ALL_LINEAR if item in ("all", "all-linear", "all_linear") else [item]
    return list(dict.fromkeys(named)) if all(isinstance(item, str) for item in named) else named


class LoraConfig(Section):
    """Low-rank adapters instead of full fine-tuning."""

    enabled: bool = Field(False, description="Train adapters only; the checkpoint's weights stay frozen.")
    rank: Positive = Field(8, description="Rank of each adapter.")
    expert_rank: Positive | Literal["auto"] | None = Field(
        None,
        description="Rank of the experts' adapters. auto: rank divided by the number of experts per token (at least "
        "1), so a token passes through the same number of adapter parameters as in a dense layer. null: rank.",
    )
    alpha: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Scale: the adapter's output is multiplied by alpha / rank. null: 2 * rank."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout probability on the adapter's input.")
    targets: Annotated[list[Text], Field(min_length=1), BeforeValidator(_as_targets)] = Field(
        [*choices.ALL_LINEAR],
        description="Modules to adapt: module names (the last part of the full name) or fnmatch patterns over full "
        "names. all or all-linear: every linear layer of the decoder, including experts (the default), without vision "
        "tower, resampler and output layer.",
    )
    train_router: bool = Field(False, description="Also train the expert routers.")
    path: PathText | None = Field(
        None,
        description="Adapter to start from: a PEFT directory, a checkpoint or a run (its newest complete checkpoint). "
        "Modules, ranks and scale must match lora.targets, lora.rank and lora.alpha. The optimizer state is not "
        "loaded: use --resume to continue a run. null: new adapters, initialized so that the model is unchanged.",
    )
