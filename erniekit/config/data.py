"""The section `data` and its sources."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from erniekit.config import choices
from erniekit.config.section import NotNegative, PathText, Positive, Section, Text


class SourceConfig(Section):
    """One source of samples."""

    path: PathText = Field(
        description="A file (JSON lines, JSON array, Parquet, Arrow, CSV, TSV or text; text files also as .gz), a "
        "directory, a glob pattern such as chats/*.jsonl, or a Hub dataset, hub:owner/name[:split]. Relative to the "
        "working directory."
    )
    weight: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Sampling weight relative to the other sources. Used with data.mix weighted."
    )
    format: choices.DataFormat | None = Field(None, description="Format of the samples. null: data.format.")
    columns: dict[Text, Text] | None = Field(
        None,
        description="Map from the keys of a format to the column names of this source, such as {messages: dialogue, "
        "images: pics}. null: no renaming.",
    )


def _as_sources(value: Any) -> Any:
    """A plain path as a source with that path; null as no sources."""
    listed = [value] if isinstance(value, str | dict) else [] if value is None else value
    if not isinstance(listed, list):
        return listed
    return [{"path": item} if isinstance(item, str) else item for item in listed]


SourceList = Annotated[list[SourceConfig], BeforeValidator(_as_sources)]


class DataConfig(Section):
    """Training and evaluation data, and how samples are packed.

    A packed sequence (a row) is a sequence of up to max_length tokens that holds several documents. Documents do not
    attend to each other.
    """

    train: Annotated[SourceList, Field(min_length=1)] = Field(
        description="Sources of training samples. A plain path is short for {path: ...}."
    )
    eval: SourceList = Field([], description="Sources of evaluation samples. They are never trained on.")
    format: choices.DataFormat = Field(
        "auto", description="Format of the samples. auto: detected from the keys of each sample."
    )
    mix: choices.Mix = Field(
        "concat",
        description="How several sources are mixed. concat: every sample once per epoch; interleave: one sample "
        "from each source in turn; weighted: samples drawn by source weight, and an epoch has the total number of "
        "samples of all sources.",
    )
    stop: choices.Stop = Field(
        "first_exhausted",
        description="With mix interleave: when an epoch ends. first_exhausted: when the first source is exhausted; "
        "all_exhausted: when every source is, and shorter sources start again until then.",
    )
    template: choices.TemplateName = Field(
        "auto", description="Chat template. auto: detected from the checkpoint."
    )
    loss_on: choices.LossOn = Field(
        "all",
        description="Answers to train. all: every answer; last_turn: the answers after the last user message; "
        "each_turn: every answer, each in a separate document that ends with it, so the context is the same as in "
        "serving.",
    )
    reasoning: choices.Reasoning = Field(
        "train",
        description="The assistant's reasoning before an answer. train: trained; mask: kept as context, without "
        "loss; drop: removed.",
    )
    max_length: Positive = Field(
        8192, description="Maximum number of tokens in a packed sequence, which is one micro-batch."
    )
    on_long: choices.OnLong = Field(
        "error",
        description="What to do with a sample longer than max_length. error: fail (see on_error); trim_history: "
        "remove the oldest exchanges; drop: skip and count the sample. Plain text is split instead.",
    )
    share_prompt: bool = Field(
        True,
        description="With task dpo: the two answers of a pair share one copy of the prompt. false: one copy per "
        "answer. The results are the same.",
    )
    shuffle: bool = Field(
        True,
        description="Shuffle the samples, in a new order every epoch. The order follows from train.seed.",
    )
    streaming: bool = Field(
        False,
        description="Read and encode samples on the fly and store nothing on disk. Needs train.max_steps. Each "
        "data-parallel rank encodes its share, so a run must resume with the same number of ranks.",
    )
    buffer: Positive = Field(
        2048,
        description="With streaming: samples that each data-parallel rank reads, shuffles and packs at a time.",
    )
    cache: bool = Field(
        True,
        description="Keep encoded samples on disk for the next run. false: remove them when the run ends. Downloaded "
        "Hub datasets stay in cache_dir in either case.",
    )
    cache_dir: PathText | None = Field(
        None, description="Directory of the cache. null: erniekit/data in XDG_CACHE_HOME or ~/.cache."
    )
    allow_urls: bool = Field(
        False,
        description="Download images and videos that samples reference by http(s) URL, from public addresses only.",
    )
    allow_private_urls: bool = Field(
        False,
        description="With allow_urls: also download from loopback, private and link-local addresses.",
    )
    media_root: PathText | None = Field(
        None,
        description="Directory that must contain all image and video files, after symbolic links are resolved. A file "
        "elsewhere is an error. null: no restriction. Paths in samples are relative to their data file.",
    )
    on_error: choices.OnError = Field(
        "raise",
        description="What to do with an invalid sample. raise: stop the run; skip: skip and count the sample.",
    )
    max_errors: NotNegative = Field(
        100,
        description="With on_error skip: maximum number of skipped samples, over all processes. The run stops at more.",
    )
    min_pixels: Positive | None = Field(
        None,
        description="Smaller images are enlarged to this number of pixels. null: the checkpoint's setting.",
    )
    max_pixels: Positive | None = Field(
        None,
        description="Larger images are reduced to this number of pixels. null: the checkpoint's setting.",
    )
    video_fps: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Frames to sample per second of video. null: the checkpoint's setting, or 2."
    )
    video_min_frames: Positive | None = Field(
        None,
        description="Minimum number of frames to sample, if the video has that many. null: the checkpoint's "
        "setting, or 16.",
    )
    video_max_frames: Positive | None = Field(
        None, description="Maximum number of frames to sample. null: the checkpoint's setting, or 180."
    )
    video_sampling: choices.VideoSampling = Field(
        "leading", description="Which frame of each interval to sample. Inference engines use leading."
    )
    video_timestamps: bool | None = Field(
        None, description="Draw the timestamp on each frame. null: the checkpoint's setting."
    )
    video_min_pixels: Positive | None = Field(
        None,
        description="Smaller frames are enlarged to this number of pixels. null: the checkpoint's setting.",
    )
    video_max_pixels: Positive | None = Field(
        None,
        description="Larger frames are reduced to this number of pixels. null: the checkpoint's setting.",
    )
    workers: NotNegative = Field(
        2, description="Worker processes that encode samples and decode images ahead of training. 0: none."
    )

    @classmethod
    def without_sources(cls, **values: Any) -> "DataConfig":
        """The section without sources, such as for a chat: `values`, which are not checked again, or defaults."""
        return cls.model_construct(**{**values, "train": [], "eval": []})
