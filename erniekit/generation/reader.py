"""An answer as its tokens come: decoded, taken apart, counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from erniekit.data.chat.template import Template
from erniekit.generation.answer import AnswerStream, Delta
from erniekit.generation.detokenizer import Detokenizer
from erniekit.generation.sampling import Sampling


def chat_sampling(sampling: Sampling, template: Template) -> Sampling:
    """What answers of a chat are generated with: the template's terminator ends them too.

    What a model that was not tuned writes after it would be a turn of the user.
    """
    return replace(sampling, stop=(*sampling.stop, template.terminator))


class AnswerReader:
    """Reads one answer, token by token.

    sampling: what it is generated with (`chat_sampling`). `tokens`: how many have come, the end token too;
    `finish`: "stop" once the model or a stop text has ended the answer, "length" until then.
    """

    def __init__(self, text: Detokenizer, template: Template, sampling: Sampling) -> None:
        self.tokens = 0
        self.finish: Literal["stop", "length"] = "length"
        self._text = text
        self._pieces = text.stream(sampling.stop)
        self._answer = AnswerStream(template)

    def feed(self, id: int) -> list[Delta]:
        """What is certain after this token."""
        self.tokens += 1
        deltas = self._answer.feed(self._pieces.feed(id))
        if self._pieces.stopped or self._text.ended([id]):
            self.finish = "stop"
        return deltas

    def end(self) -> list[Delta]:
        """What is left, when nothing comes any more."""
        return [*self._answer.feed(self._pieces.finish()), *self._answer.finish()]
