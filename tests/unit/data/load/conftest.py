"""A data set of chats, most with an image, for the tests of loaders."""

from typing import Any

import pytest

from erniekit.data.encode.encoder import Encoder
from erniekit.data.store.dataset import Dataset
from tests.unit.data.helpers import data_uri, noise, qa, write_lines
from tests.unit.data.loading import ROOM, load


def records(count: int = 40) -> list[dict[str, Any]]:
    found = []
    for number in range(count):
        image = {
            "type": "image",
            "image": data_uri(noise(8 + 20 * (number % 3), 8 + 16 * (number % 5), number)),
        }
        text = {"type": "text", "text": f"what is {number}?" * (1 + number % 4)}
        found.append(qa([[text], [image, text], [text, image, image]][number % 3], f"answer {number}"))
    return found


@pytest.fixture(scope="module")
def dataset(vl_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = write_lines(tmp_path_factory.mktemp("data") / "a.jsonl", records())
    return load(vl_encoder, path, max_length=ROOM)
