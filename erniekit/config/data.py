"""The section `data` and its sources."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from erniekit.config import choices
from erniekit.config.section import NotNegative, PathText, Positive, Section, Text


class SourceConfig(Section):
    """One source of samples."""

    path: PathText = Field(
        description="A file (JSON lines, a JSON array, parquet, csv, txt; .gz too), a directory, a pattern such as "
        "chats/*.jsonl, or hub:owner/name[:split]. Relative to the working directory."
    )
    weight: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Its share of the samples, relative to the other weights, with data.mix weighted."
    )
    format: choices.DataFormat | None = Field(None, description="Format of its samples. null: data.format.")
    columns: dict[Text, Text] | None = Field(
        None,
        description="Its own names for keys of a format, as in {messages: dialogue, images: pics}. null: it has none.",
    )


def _as_sources(value: Any) -> Any:
    """A path alone stands for a source with that path."""
    listed = [value] if isinstance(value, str | dict) else value
    if not isinstance(listed, list):
        return listed
    return [{"path": item} if isinstance(item, str) else item for item in listed]


SourceList = Annotated[list[SourceConfig], BeforeValidator(_as_sources)]


class DataConfig(Section):
    """The conversations, and how they become packed rows of tokens."""

    train: Annotated[SourceList, Field(min_length=1)] = Field(
        description="Sources of training samples; a path alone stands for {path: ...}."
    )
    eval: SourceList = Field([], description="Held-out sources; their loss is reported, never trained on.")
    format: choices.DataFormat = Field(
        "auto", description="Format of the samples. auto: told from the keys of each sample."
    )
    mix: choices.Mix = Field(
        "concat",
        description="How several sources are mixed. concat: every sample once an epoch; interleave: a sample of each "
        "in turn; weighted: drawn by weight, as many an epoch as all sources have.",
    )
    stop: choices.Stop = Field(
        "first_exhausted",
        description="With mix interleave: what ends an epoch; shorter sources begin again until all are exhausted.",
    )
    template: choices.TemplateName = Field(
        "auto", description="Chat template. auto: told from the checkpoint."
    )
    loss_on: choices.LossOn = Field(
        "all",
        description="Which answers are learnt. all: every one; last_turn: those after the last user message; "
        "each_turn: every one, in a document of its own that ends with it, as the model will meet it.",
    )
    reasoning: choices.Reasoning = Field(
        "train",
        description="What the assistant thinks before it answers: learnt (train), read only (mask), "
        "or left out (drop).",
    )
    max_length: Positive = Field(8192, description="Tokens in a packed row: the micro-batch.")
    on_long: choices.OnLong = Field(
        "error",
        description="A sample of more than max_length tokens is an error (see on_error), loses its oldest exchanges "
        "(trim_history), or is left out and counted (drop). Plain text is cut into pieces instead.",
    )
    share_prompt: bool = Field(
        True,
        description="With task dpo: the prompt of a pair stands once in a row, before both answers. false: once for "
        "each; the results are the same.",
    )
    shuffle: bool = Field(True, description="Draw the samples of each epoch in a new, seeded order.")
    streaming: bool = Field(
        False,
        description="Read and encode samples as they are needed, and keep nothing on disk; needs train.max_steps. Each "
        "data-parallel process encodes its own share, so a run continues with the same number of them.",
    )
    buffer: Positive = Field(
        2048,
        description="With streaming: samples that each data-parallel process reads, shuffles and packs together.",
    )
    cache: bool = Field(
        True,
        description="Keep encoded samples on disk, so that the next run starts at once. false: they go with the run. "
        "Datasets of the hub stay in cache_dir in either case.",
    )
    cache_dir: PathText | None = Field(
        None, description="Where they are kept. null: erniekit/data in XDG_CACHE_HOME, or in ~/.cache."
    )
    allow_urls: bool = Field(
        False, description="Fetch pictures and videos that samples name by http(s) address."
    )
    on_error: choices.OnError = Field(
        "raise", description="A sample that cannot be used stops the run (raise) or is counted (skip)."
    )
    max_errors: NotNegative = Field(
        100, description="With on_error skip: more skipped samples than this, of all processes, stop the run."
    )
    min_pixels: Positive | None = Field(
        None, description="Pixels to which a smaller picture is enlarged. null: the checkpoint's."
    )
    max_pixels: Positive | None = Field(
        None, description="Pixels to which a larger picture is reduced. null: the checkpoint's."
    )
    video_fps: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Frames taken of a second of video. null: the checkpoint's, or 2."
    )
    video_min_frames: Positive | None = Field(
        None, description="Fewest frames taken of a video that has as many. null: the checkpoint's, or 16."
    )
    video_max_frames: Positive | None = Field(
        None, description="Most frames taken of a video. null: the checkpoint's, or 180."
    )
    video_sampling: choices.VideoSampling = Field(
        "leading", description="Which frame of each interval is taken; leading is what engines take."
    )
    video_timestamps: bool | None = Field(
        None, description="Draw its time on each frame. null: as the checkpoint says."
    )
    video_min_pixels: Positive | None = Field(
        None, description="Pixels to which smaller frames are enlarged. null: the checkpoint's."
    )
    video_max_pixels: Positive | None = Field(
        None, description="Pixels to which larger frames are reduced. null: the checkpoint's."
    )
    workers: NotNegative = Field(
        2, description="Processes that encode samples and decode pictures ahead of training. 0: none."
    )

    @classmethod
    def without_sources(cls, **values: Any) -> "DataConfig":
        """The section where no run names sources, such as for a chat: `values`, not checked again, or defaults."""
        return cls.model_construct(**{**values, "train": [], "eval": []})
