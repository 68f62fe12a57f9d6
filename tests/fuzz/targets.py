"""All targets of the fuzzer."""

from __future__ import annotations

from tests.fuzz.checkpoints import adapter_files, trainer_state
from tests.fuzz.driver import Target
from tests.fuzz.files import configuration, data_file
from tests.fuzz.models import model_files
from tests.fuzz.requests import http_body
from tests.fuzz.weights import safetensors_header, safetensors_index

TARGETS: tuple[Target, ...] = (
    safetensors_header,
    safetensors_index,
    model_files,
    adapter_files,
    trainer_state,
    http_body,
    data_file,
    configuration,
)
