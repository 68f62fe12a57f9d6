"""Loss-free load balancing: the correction bias follows the load of the experts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle
from paddle import Tensor


@paddle.no_grad()
def update_bias(bias: Tensor, usage: Sequence[np.ndarray | None], rate: float) -> None:
    """Move `bias` [modalities, experts] in place: b_e += rate * sign(mean(usage) - usage_e).

    `usage` holds, per modality, the tokens of the step routed to each expert, int64 [experts], over all rows and
    ranks. None leaves the bias of the modality unchanged. Wang et al., arXiv 2408.15664, algorithm 1.
    """
    change = np.zeros(bias.shape, np.float32)
    for row, counts in zip(change, usage, strict=True):
        if counts is not None:
            row += rate * np.sign(counts.mean() - counts)
    if change.any():
        bias.add_(paddle.to_tensor(change))
