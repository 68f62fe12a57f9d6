"""What answers requests, without HTTP: one after the other, in the order in which they come.

Requests are read in the threads of their connections, so that a bad one is refused while another is answered. The
model runs in one thread, whichever calls `run`: Paddle's settings belong to the thread that made them.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
import traceback
from dataclasses import dataclass, field, replace

from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.document import Document
from erniekit.data.encode.encoder import Encoder
from erniekit.generation.answer import Delta
from erniekit.generation.generate import Generator
from erniekit.generation.reader import AnswerReader, chat_sampling
from erniekit.generation.sampling import Sampling
from erniekit.generation.text import AnswerText
from erniekit.models.ernie import ErnieModel
from erniekit.serving.fields import RequestError
from erniekit.serving.request import (
    ChatRequest,
    check_thinking,
    read_conversation,
    read_sampling,
)
from erniekit.serving.response import Completion, Finished

# What comes out of a job: the next pieces of the answer, its end, or why there is none.
Event = list[Delta] | Finished | RequestError


@dataclass(frozen=True, slots=True)
class Job:
    """An answer on order.

    notices: of what in its messages is not read; events: what has come of it, the last one is no list; cancelled:
    nobody waits for it.
    """

    prompt: Document
    sampling: Sampling
    notices: tuple[str, ...] = ()
    events: queue.SimpleQueue[Event] = field(default_factory=queue.SimpleQueue)
    cancelled: threading.Event = field(default_factory=threading.Event)


class ChatService:
    """One model under a name.

    defaults: what a request leaves out; answers whose seed it leaves out are each drawn anew. allow_urls: whether
    pictures and videos may be http(s) URLs, which are then fetched from here.
    """

    def __init__(
        self,
        name: str,
        model: ErnieModel,
        encoder: Encoder,
        text: AnswerText,
        defaults: Sampling,
        *,
        allow_urls: bool = False,
    ) -> None:
        self.name = name
        self.created = int(time.time())
        self._positions = model.config.max_position_embeddings
        self._encoder = encoder
        self._text = text
        self._defaults = defaults
        self._allow_urls = allow_urls
        self._generator = Generator(model, text.eos_token_ids, encoder.media_spec, text=text)
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._stopped = False
        self._numbers = itertools.count()

    def order(self, request: ChatRequest) -> tuple[Job, Completion]:
        """Puts the answer to a request in the queue. From any thread. Raises RequestError."""
        self.check_name(request.model)
        template = self._encoder.template
        check_thinking(request, template)
        number = next(self._numbers)
        conversation = read_conversation(request, f"request {number + 1}", allow_urls=self._allow_urls)
        try:
            prompt = self._encoder.encode_prompt(conversation)
        except SampleError as error:
            raise RequestError(error.detail, param="messages") from error
        defaults = replace(self._defaults, seed=self._defaults.seed + number)
        sampling = chat_sampling(read_sampling(request, defaults, len(prompt), self._positions), template)
        request.thinking.check_limits(template, sampling.max_new_tokens)
        job = Job(prompt, sampling, conversation.notices)
        self._jobs.put(job)
        return job, Completion(self.name, template, request.may_call)

    def check_name(self, name: str | None) -> None:
        """Raises RequestError for another model than this one; a request may also name none."""
        if name and name != self.name:
            message = f"there is no model {name!r}; this server has {self.name!r}"
            raise RequestError(message, status=404, param="model", code="model_not_found")

    def run(self) -> None:
        """Answers requests until `stop`."""
        while (job := self._jobs.get()) is not None:
            self.answer(job)

    def stop(self) -> None:
        """Ends `run`, after the next token. From anywhere, also a signal handler."""
        self._stopped = True
        self._jobs.put(None)

    def answer(self, job: Job) -> None:
        """Generates one answer, as long as somebody waits for it. What goes wrong is told in its events."""

        def unwanted() -> bool:
            return job.cancelled.is_set() or self._stopped

        if unwanted():
            return
        reader = AnswerReader(self._text, self._encoder.template, job.sampling)
        try:
            for id in self._generator.stream(job.prompt, job.sampling):
                job.events.put(reader.feed(id))
                if unwanted():
                    return
        except SampleError as error:  # pictures are opened here
            job.events.put(RequestError(error.detail, param="messages"))
        except Exception as error:
            # A bug, or no memory for this prompt: the next one may still be answered.
            traceback.print_exc()
            job.events.put(RequestError(f"the answer failed: {type(error).__name__}: {error}", status=500))
        else:
            job.events.put(reader.end())
            job.events.put(Finished(reader.finish, len(job.prompt), reader.tokens))
