"""A model that says what a test wants it to say."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from erniekit.chat.session import Chat
from erniekit.data.encode.document import Document
from erniekit.data.encode.encoder import Encoder
from erniekit.generation.detokenizer import Detokenizer
from erniekit.generation.generate import Generator
from erniekit.generation.load import find_model
from erniekit.generation.sampling import Sampling
from erniekit.models.ernie import ErnieModel

END = "</s>"
INTERRUPT = "(Ctrl-C)"
TOOLS = ({"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}},)


class Script:
    """Answers in their order, each with `</s>` where it ends, "(Ctrl-C)" where the user stops it: while the last
    token before it is made.

    `prompts`: what was asked, as text with one placeholder for an image.
    """

    def __init__(self, directory: Path, model: ErnieModel, template: str, answers: Sequence[str]) -> None:
        self.model = model
        self.encoder: Encoder = find_model(directory).encoder(template)
        self.text = Detokenizer.from_checkpoint(directory)
        self.prompts: list[str] = []
        self.samplings: list[Sampling] = []
        self._answers = list(answers)

    def stream(self, document: Document, sampling: Sampling) -> Iterator[int]:
        """In the place of Generator.stream."""
        self.prompts.append(self.text.decode_all(document.input_ids.tolist()))
        self.samplings.append(sampling)
        answer = self._answers.pop(0)
        said, interrupt, _ = answer.partition(INTERRUPT)
        body = said.removesuffix(END)
        ids = self.text._backend.encode(body, add_special_tokens=False).ids
        ids += [2] * (body != said)
        yield from ids[: -1 if interrupt else None]
        if interrupt:
            os.kill(os.getpid(), signal.SIGINT)
            yield from ids[-1:]
            pytest.fail("Ctrl-C was lost") if ids else None


def scripted_chat(
    monkeypatch: pytest.MonkeyPatch, script: Script, tools: tuple[dict[str, Any], ...] = ()
) -> Chat:
    """A chat whose model follows the script."""
    monkeypatch.setattr(
        Generator, "stream", lambda self, document, sampling: script.stream(document, sampling)
    )
    return Chat(script.model, script.encoder, script.text, Sampling(50), tools)
