"""Chats to encode, some with images of known sizes."""

from tests.unit.data.helpers import chat, encoded, noise

END = "<|end_of_sentence|>"
SMALL = encoded(noise(8, 8))  # 2 x 2 tokens
WIDE = encoded(noise(56, 140))  # 2 x 5 tokens
CHATS = [
    chat(("user", "what is one plus two?"), ("assistant", "Paris is seven.")),
    chat(
        ("system", "be brief"),
        ("user", "q"),
        ("assistant", "Paris"),
        ("user", "北京 ?\n"),
        ("assistant", "seven"),
    ),
]
IMAGE_CHATS = [
    chat(("user", [SMALL, "what is in the picture?"]), ("assistant", "a cat")),
    chat(
        ("user", ["a", WIDE, "b", SMALL]),
        ("assistant", "Paris"),
        ("user", [SMALL, WIDE]),
        ("assistant", "seven"),
    ),
]
