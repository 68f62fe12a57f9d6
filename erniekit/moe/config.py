"""Settings of the mixture-of-experts layers of a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MoeConfig:
    """Mixture-of-experts settings. Modality 0 is text; modality 1, only in VL models, is vision.

    `num_experts` is the number of experts per modality; `intermediate_sizes` is the width per modality;
    `sparse_layers` are the indices of the layers with experts. `expert_ranks` is the expert-parallel degree: each
    process, at `expert_rank`, holds an equal part of the experts of each modality.
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
        """Experts of all modalities, on all processes."""
        return self.num_modalities * self.num_experts

    @property
    def shared_intermediate_size(self) -> int:
        """Width of the MLP that all shared experts are fused into; 0 without shared experts."""
        return self.intermediate_sizes[0] * self.num_shared_experts
