"""The data of a run: training rows and held-out rows of one checkpoint's tokenizer and template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from erniekit.config import Config, DataConfig
from erniekit.data.dataset import Dataset, load_dataset
from erniekit.data.encode import Encoder, make_encoder
from erniekit.data.loader import RowLoader
from erniekit.train.plan import describe_data


@dataclass(frozen=True)
class Inputs:
    """`heldout` is None where data.eval is empty."""

    encoder: Encoder
    train: RowLoader
    heldout: RowLoader | None

    def close(self) -> None:
        """Stop the threads that decode pictures."""
        self.train.close()
        if self.heldout is not None:
            self.heldout.close()


def load_inputs(config: Config, say: Callable[[str], None]) -> Inputs:
    """Read and encode all data files, saying what they hold. Raises ErnieKitError for what is wrong there."""
    data = config.data
    encoder = make_encoder(Path(config.model.path), data.template, data.min_pixels, data.max_pixels)
    train = _load(data.train, data, encoder, config.train.seed)
    heldout = _load(data.eval, data, encoder, config.train.seed) if data.eval else None
    for name, loader in (("training data", train), ("held-out data", heldout)):
        if loader is not None:
            for line in describe_data(name, loader.dataset.stats):
                say(line)
            # From here on: pictures that turn out to be damaged when they are decoded.
            loader.dataset.budget.on_skip = lambda error: say(f"skipped: {error}")
    return Inputs(encoder, train, heldout)


def _load(paths: list[str], data: DataConfig, encoder: Encoder, seed: int) -> RowLoader:
    dataset: Dataset = load_dataset(
        paths,
        encoder=encoder,
        format=data.format,
        max_length=data.max_length,
        on_error=data.on_error,
        max_errors=data.max_errors,
    )
    return RowLoader(
        dataset, max_length=data.max_length, shuffle=data.shuffle, seed=seed, workers=data.workers
    )
