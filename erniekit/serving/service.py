"""Chat completions without HTTP, one at a time, in the order of the requests.

Requests are checked and encoded in the caller's thread, so that a bad one is refused while another one is answered.
The model runs in the thread that calls `run`: Paddle's settings belong to the thread that made them.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from erniekit.data.chat.conversation import Conversation, SampleError
from erniekit.data.encode.document import Document
from erniekit.data.encode.encoder import Encoder
from erniekit.data.media.access import NO_URLS, MediaAccess
from erniekit.generation.answer import AnswerDecoder, Delta
from erniekit.generation.detokenizer import Detokenizer
from erniekit.generation.generate import Generator
from erniekit.generation.sampling import Sampling, chat_sampling
from erniekit.models.ernie import ErnieModel
from erniekit.serving.fields import RequestError
from erniekit.serving.limits import check_media, check_text
from erniekit.serving.request import (
    ChatRequest,
    read_conversation,
    read_sampling,
)
from erniekit.serving.response import Completion, Finished

_SIGNAL_SECONDS = 0.5
# The next pieces of an answer, its end, or the reason why there is none. The last two are the last event.
Event = list[Delta] | Finished | RequestError


@dataclass(frozen=True, slots=True)
class QueuedRequest:
    """A request that waits for the model, or is being answered.

    on_event: called in the model's thread; notices: keys in its messages that are ignored; cancelled: set it when the
    client is gone.
    """

    prompt: Document
    sampling: Sampling
    on_event: Callable[[Event], None]
    notices: tuple[str, ...] = ()
    cancelled: threading.Event = field(default_factory=threading.Event)


class ChatService:
    """One model under a name.

    defaults: for fields that a request leaves out; without a seed, each answer is sampled with a new one. access:
    whether images and videos may be http(s) URLs, see `erniekit.serving.media`.
    """

    def __init__(
        self,
        name: str,
        model: ErnieModel,
        encoder: Encoder,
        detokenizer: Detokenizer,
        defaults: Sampling,
        *,
        access: MediaAccess = NO_URLS,
    ) -> None:
        self.name = name
        self.created = int(time.time())
        self._positions = model.config.max_position_embeddings
        self._encoder = encoder
        self._detokenizer = detokenizer
        self._defaults = defaults
        self._access = access
        self._generator = Generator(
            model, detokenizer.eos_token_ids, encoder.media_spec, detokenizer=detokenizer
        )
        self._queue: queue.SimpleQueue[QueuedRequest | None] = queue.SimpleQueue()
        self._stopped = False
        self._numbers = itertools.count()

    def read(self, request: ChatRequest) -> Conversation:
        """The conversation of a request. Its media may be URLs. Raises RequestError."""
        self.check_name(request.model)
        request.thinking.check(self._encoder.template)
        check_text(request.messages, request.tools, self._positions)
        return read_conversation(request, "request", self._access)

    def submit(
        self, request: ChatRequest, conversation: Conversation, on_event: Callable[[Event], None]
    ) -> tuple[QueuedRequest, Completion]:
        """Adds a request to the queue, from any thread. conversation: of `read`. Raises RequestError."""
        template, number = self._encoder.template, next(self._numbers)
        try:
            prompt = self._encoder.encode_prompt(conversation)
            check_media(prompt)
        except SampleError as error:
            raise RequestError(error.detail, param="messages") from error
        defaults = replace(self._defaults, seed=self._defaults.seed + number)
        sampling = chat_sampling(read_sampling(request, defaults, len(prompt), self._positions), template)
        request.thinking.check_limits(template, sampling.max_new_tokens)
        queued = QueuedRequest(prompt, sampling, on_event, conversation.notices)
        self._queue.put(queued)
        if self._stopped:
            self._refuse_all()
        return queued, Completion(self.name, template, request.may_call)

    def check_name(self, name: str | None) -> None:
        """Raises RequestError for another model; a request need not name one."""
        if name and name != self.name:
            message = f"there is no model {name!r}; this server has {self.name!r}"
            raise RequestError(message, status=404, param="model", code="model_not_found")

    def run(self) -> None:
        """Answers requests until `stop`; the remaining ones then get an error."""
        try:
            while (queued := self._next()) is not None:
                self._answer(queued)
        finally:
            self._stopped = True
            self._refuse_all()

    def _next(self) -> QueuedRequest | None:
        """The next request; None to stop. Waits briefly each time, since a signal does not end a wait in C."""
        while True:
            with suppress(queue.Empty):
                return self._queue.get(timeout=_SIGNAL_SECONDS)

    def stop(self) -> None:
        """Ends `run` after the next token. May be called from any thread and from signal handlers."""
        self._stopped = True
        self._queue.put(None)

    def _answer(self, queued: QueuedRequest) -> None:
        """Generates one answer, as long as its client is there."""
        decoder = AnswerDecoder(self._detokenizer, self._encoder.template, queued.sampling.stop)
        try:
            if self._goes_on(queued):
                for token in self._generator.stream(queued.prompt, queued.sampling):
                    queued.on_event(decoder.feed(token))
                    if not self._goes_on(queued):
                        return
                queued.on_event(decoder.end())
                queued.on_event(Finished(decoder.finish, len(queued.prompt), decoder.tokens))
        except SampleError as error:  # images are opened here
            queued.on_event(RequestError(error.detail, param="messages"))
        except RequestError as error:
            queued.on_event(error)
        except KeyboardInterrupt:
            queued.on_event(_stopping())
            raise
        except Exception as error:
            # A bug, or too little memory for this prompt: others may still be answered.
            traceback.print_exc()
            queued.on_event(RequestError(f"the answer failed: {type(error).__name__}: {error}", status=500))

    def _goes_on(self, queued: QueuedRequest) -> bool:
        if self._stopped:
            raise _stopping()
        return not queued.cancelled.is_set()

    def _refuse_all(self) -> None:
        while True:
            try:
                queued = self._queue.get_nowait()
            except queue.Empty:
                return
            if queued is not None:
                queued.on_event(_stopping())


def _stopping() -> RequestError:
    return RequestError("the server is shutting down", status=503)
