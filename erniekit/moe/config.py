"""Settings of the mixture-of-experts layers of a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MoeConfig:
    """Mixture-of-experts settings. Modality 0 is text; modality 1, only in VL models, is vision.

    `num_experts` counts the experts of one modality; `intermediate_sizes` holds one width a modality;
    `sparse_layers` are the indices of the layers that have experts. Of `expert_ranks` processes that share the
    experts, the one with `expert_rank` holds an equal part of those of each modality.
    """

    num_experts: int
    top_k: int
    intermediate_sizes: tuple[int, ...]
    num_shared_experts: int
    norm_min: float
    sparse_layers: tuple[int, ...]
    expert_rank: int = 0
    expert_ranks: int = 1

    @property
    def num_modalities(self) -> int:
        """1 for text models, 2 for vision-language models."""
        return len(self.intermediate_sizes)

    @property
    def total_experts(self) -> int:
        """Experts of all modalities, wherever they are."""
        return self.num_modalities * self.num_experts

    @property
    def shared_intermediate_size(self) -> int:
        """Width of the one fused MLP that stands for all shared experts; 0 where there are none."""
        return self.intermediate_sizes[0] * self.num_shared_experts
