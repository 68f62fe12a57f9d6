"""Make a model from its configuration."""

from __future__ import annotations

from erniekit.models.config import ErnieConfig
from erniekit.models.ernie import ErnieModel
from erniekit.models.specs import TensorSpec, parameter_specs

__all__ = ["TensorSpec", "build_model", "parameter_specs"]


def build_model(config: ErnieConfig, dtype: str = "float32") -> ErnieModel:
    """A model with zero weights, to be filled from a checkpoint. Router parameters are float32 whatever `dtype`."""
    return ErnieModel(config, dtype)
