from pathlib import Path

import pytest

from erniekit.data.encode.encoder import Encoder, make_encoder
from tests.unit.data.helpers import make_checkpoint


@pytest.fixture(scope="session")
def text_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("text"), "text")


@pytest.fixture(scope="session")
def vl_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("vl"), "vl")


@pytest.fixture(scope="session")
def thinking_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("thinking"), "thinking")


@pytest.fixture(scope="session")
def text_thinking_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("text_thinking"), "text_thinking")


@pytest.fixture(scope="session")
def text_encoder(text_checkpoint: Path) -> Encoder:
    return make_encoder(text_checkpoint)


@pytest.fixture(scope="session")
def vl_encoder(vl_checkpoint: Path) -> Encoder:
    return make_encoder(vl_checkpoint)


@pytest.fixture(scope="session")
def thinking_encoder(thinking_checkpoint: Path) -> Encoder:
    return make_encoder(thinking_checkpoint)


@pytest.fixture(scope="session")
def text_thinking_encoder(text_thinking_checkpoint: Path) -> Encoder:
    return make_encoder(text_thinking_checkpoint)
