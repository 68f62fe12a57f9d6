"""Samples as text: trained tokens are bold, text is escaped, and TensorBoard shows it as it is."""

import json
from pathlib import Path

import numpy as np
import pytest
from tensorboard.plugins.text.text_plugin import text_array_to_html

from erniekit.config import load_config
from erniekit.create.create import create_model
from erniekit.data.encode.encoder import run_encoder
from erniekit.train.trackers.texts import config_text, samples_text


@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_samples_and_configuration(tmp_path: Path, task: str) -> None:
    question = {"role": "user", "content": "Say <b>*one*</b>\n\n  and more."}
    samples = [
        {"messages": [question], "chosen": "<i>one</i>", "rejected": "two"},
        *(
            [{"messages": [question, {"role": "assistant", "content": "x" * 30_000}]}]
            if task == "sft"
            else []
        ),
    ]
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    create_model("tiny-dense", tmp_path / "m", [data], seed=1)
    file = tmp_path / "run.yaml"
    file.write_text(
        f"task: {task}\nmodel: {{path: {tmp_path}/m}}\ndata: {{train: {data}, max_length: 99999}}\n"
    )
    config = load_config(file, [f"train.output_dir={tmp_path / 'run'}"])

    html = samples_text(config, run_encoder(config))
    shown = text_array_to_html(np.array(html.encode(), object), True)
    assert "Say &lt;b&gt;*one*&lt;/b&gt;⏎<br>⏎<br>&nbsp; and more." in shown.replace("\xa0", "&nbsp;")
    assert "<strong>&lt;i&gt;one&lt;/i&gt;" in shown
    assert ("<strong>two" in shown and "rejected answer" in shown) == (task == "dpo")
    assert ("... (cut here)" in shown) == (task == "sft") and len(shown) < 25_000
    assert ("task: dpo" in config_text(config)) == (task == "dpo")
