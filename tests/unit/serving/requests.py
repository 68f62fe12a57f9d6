"""Requests of the API as the server reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from erniekit.data.chat.conversation import Message
from erniekit.data.media.access import NO_URLS, MediaAccess
from erniekit.serving.fields import RequestError
from erniekit.serving.request import ChatRequest, read_conversation, read_request

QUESTION = {"role": "user", "content": "Hello"}
DATA = "data:image/png;base64,eHh4"


def request_of(**fields: Any) -> ChatRequest:
    return read_request(json.dumps({"messages": [QUESTION], **fields}).encode())


def refusal_of(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as error:
        request_of(**fields)
    return error.value


def messages_of(*messages: Any, access: MediaAccess = NO_URLS, **fields: Any) -> tuple[Message, ...]:
    request = request_of(messages=list(messages), **fields)
    return read_conversation(request, "request 1", access).messages
