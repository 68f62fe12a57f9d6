"""An ERNIE 4.5 model of any family over one packed row."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import Tensor, nn

from erniekit.layers import Linear
from erniekit.models.attention import Attend, DocumentAttention
from erniekit.models.config import ErnieConfig
from erniekit.models.decoder import Decoder, DecoderOutput
from erniekit.models.resampler import Resampler
from erniekit.models.rope import decoder_rotation
from erniekit.models.row import RowInputs
from erniekit.models.sequence_sharding import NoSharding, SequenceSharding
from erniekit.models.vision import VisionTower
from erniekit.moe.router import NO_ROUTER_LOSSES, ModalityIndex, RouterLossFlags
from erniekit.vl_checkpoint import CLIP_MEAN, CLIP_STD


class ErnieModel(nn.Layer):
    """Parameters are named and shaped as in the Hub's `-PT` checkpoints of the same family."""

    def __init__(self, config: ErnieConfig, dtype: str = "float32") -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.image_mean, self.image_std = CLIP_MEAN, CLIP_STD
        self.sharding: SequenceSharding = NoSharding()
        self.model = Decoder(config, dtype)
        if config.vision is not None:
            self.vision_model = VisionTower(config.vision, dtype)
            self.model.resampler_model = Resampler(
                config.vision, config.hidden_size, config.rms_norm_eps, dtype
            )
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, dtype=dtype)

    def forward(
        self, row: RowInputs, attend: Attend | None = None, loss_flags: RouterLossFlags = NO_ROUTER_LOSSES
    ) -> DecoderOutput:
        """Hidden states of every position, and router outputs with the sums that `loss_flags` requests.

        `attend` replaces document attention (generation, preference pairs). With context parallelism the outputs belong
        to the span of this process.
        """
        part = self.sharding.part(row)
        x = self.model.embed_tokens(paddle.to_tensor(part.input_ids))
        if len(row.grid_thw):
            features = self.sharding.features(self.vision_features(part.patches, part.grid_thw), row)
            if features.shape[0] != len(part.media_positions):
                raise ValueError(
                    f"{len(part.media_positions)} placeholder tokens for {features.shape[0]} vision features"
                )
            x = paddle.scatter(x, paddle.to_tensor(part.media_positions), features.astype(x.dtype))
        if attend is None:
            attend = DocumentAttention(row.cu_seqlens, causal=True, heads=self.config.num_attention_heads)
        attend = self.sharding.attend(attend, len(row.input_ids))
        rotation = decoder_rotation(paddle.to_tensor(part.position_ids), self.config)
        index = ModalityIndex(part.modality, part.valid, self.sharding.add)
        return self.model(x, rotation, index, attend, loss_flags)

    def vision_features(self, patches: np.ndarray, grid_thw: np.ndarray) -> Tensor:
        """Patches [P, patch_dim] of int [N, 3] images and videos -> features [media tokens, hidden]."""
        if not len(grid_thw):
            return self._no_features()
        pixels = paddle.to_tensor(patches)
        if patches.dtype == np.uint8:
            pixels = self._normalize(pixels)
        hidden = self.vision_model(pixels.astype(self.dtype), grid_thw)
        return self.model.resampler_model(hidden, grid_thw)

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] -> [n, vocab]."""
        return paddle.matmul(hidden, self.output_weight, transpose_y=True)

    @property
    def output_weight(self) -> Tensor:
        """[vocab, hidden]: the weight of the head, or of the embedding if they are tied."""
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def _no_features(self) -> Tensor:
        """[0, hidden] for a process without images in its part of the row; with a gradient, as on other processes."""
        features = paddle.zeros([0, self.config.hidden_size], self.dtype)
        layers = (self.vision_model, self.model.resampler_model)
        features.stop_gradient = all(p.stop_gradient for layer in layers for p in layer.parameters())
        return features

    def _normalize(self, pixels: Tensor) -> Tensor:
        """uint8 [P, channels * size * size] -> float32, normalised per channel."""
        vision = self.config.vision
        assert vision is not None
        area = vision.patch_size**2
        mean = np.repeat(np.array(self.image_mean, np.float32), area)
        std = np.repeat(np.array(self.image_std, np.float32), area)
        return (pixels.astype("float32") / 255.0 - paddle.to_tensor(mean)) / paddle.to_tensor(std)
