"""The configuration and samples of a run, as texts in HTML for trackers."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from erniekit.config import Config, dump_config
from erniekit.data.encode.encoder import Encoder
from erniekit.data.encode.samples import SampleReader, pair_mode
from erniekit.data.media.access import MediaAccess
from erniekit.display.text import counted, visible
from erniekit.inspection.data_files import training_files
from erniekit.inspection.preview import PreviewedSample, Stretch, preview_samples
from erniekit.inspection.select import first_records

_SAMPLES = 3
_MOST_CHARACTERS = 20_000  # of a document


def config_text(config: Config) -> str:
    """The settings that differ from the defaults, as YAML."""
    settings = escape(dump_config(config, defaults=False))
    return f"<p>Settings that differ from the defaults; config.yaml has all.</p><pre>{settings}</pre>"


def samples_text(config: Config, encoder: Encoder) -> str:
    """The first training samples as the model sees them, with trained tokens in bold."""
    data, pairs = config.data, pair_mode(config.task, config.data.share_prompt)
    reader = SampleReader(encoder, data.max_length, data.on_long, MediaAccess.of(data), pairs)
    samples = preview_samples(first_records(training_files(data), _SAMPLES), reader)
    parts = [part for sample in samples for part in _sample(sample)]
    return "<p>Trained tokens are <strong>bold</strong>; ⏎ is a newline.</p>" + "".join(parts)


def _sample(sample: PreviewedSample) -> Iterator[str]:
    if sample.error is not None:
        yield f"<p>{escape(visible(str(sample.error)))}</p>"
    for document in sample.documents:
        length = f"{counted(document.tokens, 'token')}, {document.loss_tokens:,} trained"
        yield f"<p><em>{escape(visible(document.sample_id))}: {length}</em></p>"
        for stretch in document.stretches:
            if stretch.title:
                yield f"<p><em>{escape(stretch.title)}</em></p>"
            yield f"<p>{''.join(_marked(stretch))}</p>"


def _marked(stretch: Stretch) -> Iterator[str]:
    room = _MOST_CHARACTERS
    for piece in stretch.pieces:
        # Not <pre>, in which TensorBoard cuts long lines.
        text = escape(visible(piece.text[:room])).replace("\n", "⏎<br>").replace("  ", "&nbsp; ")
        yield f"<strong>{text}</strong>" if piece.trained else text
        room -= len(piece.text)
        if room < 0:
            yield " ... (cut here)"
            return
