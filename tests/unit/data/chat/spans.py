"""Spans of a template as text."""

from itertools import groupby

from erniekit.data.chat.conversation import Conversation, ImagePart
from erniekit.data.chat.families import TEMPLATES
from erniekit.data.chat.loss_policy import LossPolicy
from erniekit.data.chat.template import MediaSpan, Template, TextSpan

TOOLS = ({"type": "function", "function": {"name": "time", "description": "北京 time"}},)


def shown(
    template: Template | str,
    conversation: Conversation,
    prompt: bool = False,
    policy: LossPolicy | None = None,
) -> str:
    """Spans as text: [trained], (image), (video)."""
    template = TEMPLATES[template] if isinstance(template, str) else template
    render = template.render_prompt if prompt else template.render
    pieces = []
    for span in render(conversation, policy or LossPolicy()):
        if isinstance(span, MediaSpan):
            pieces.append((False, "(image)" if isinstance(span.part, ImagePart) else "(video)"))
        else:
            assert isinstance(span, TextSpan)
            pieces.append((span.trained, span.text))
    out = ""
    for trained, group in groupby((piece for piece in pieces if piece[1]), key=lambda piece: piece[0]):
        text = "".join(piece[1] for piece in group)
        out += f"[{text}]" if trained else text
    return out
