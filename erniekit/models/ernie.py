"""An ERNIE 4.5 model of any family over one packed row."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import Tensor, nn

from erniekit.kernels.embedding import sort_by_id
from erniekit.layers import Linear
from erniekit.models.attention import Attend, DocumentAttention
from erniekit.models.config import ErnieConfig
from erniekit.models.decoder import Decoder, DecoderOutput
from erniekit.models.resampler import Resampler
from erniekit.models.rope import decoder_rotation, vision_rotation
from erniekit.models.row import DevicePatches, DeviceRow, RowInputs
from erniekit.models.sequence_sharding import NoSharding, SequenceSharding
from erniekit.models.vision import VisionTower
from erniekit.moe.router import NO_ROUTER_LOSSES, ModalityIndex, RouterLossFlags
from erniekit.upload import Upload
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
        self,
        row: RowInputs | DeviceRow,
        attend: Attend | None = None,
        loss_flags: RouterLossFlags = NO_ROUTER_LOSSES,
    ) -> DecoderOutput:
        """Hidden states of every position, and router outputs with the sums that `loss_flags` requests.

        A row that is not on the device is uploaded first, with `attend`. With context parallelism the outputs belong
        to the span of this process.
        """
        if isinstance(row, RowInputs):
            row = self.upload(row, attend)
        x = self.model.embed_tokens(row.input_ids, row.by_id)
        if len(row.inputs.grid_thw):
            features = self._no_features() if row.patches is None else self.vision_features(row.patches)
            features = self.sharding.features(features, row.inputs)
            if features.shape[0] != row.media_positions.shape[0]:
                raise ValueError(
                    f"{row.media_positions.shape[0]} placeholder tokens for {features.shape[0]} vision features"
                )
            x = paddle.scatter(x, row.media_positions, features.astype(x.dtype))
        return self.model(x, row.rotation, row.index, row.attend, loss_flags)

    def upload(
        self, row: RowInputs, attend: Attend | None = None, upload: Upload = paddle.to_tensor
    ) -> DeviceRow:
        """Copy all that the model reads of a row to the device: nothing is copied while layers are computed.

        `attend` replaces document attention (generation, preference pairs).
        """
        part = self.sharding.part(row)
        if attend is None:
            heads = self.config.num_attention_heads
            attend = DocumentAttention(row.cu_seqlens, causal=True, heads=heads, upload=upload)
        return DeviceRow(
            inputs=row,
            input_ids=upload(part.input_ids),
            by_id=sort_by_id(part.input_ids, self.model.embed_tokens.weight, upload),
            rotation=decoder_rotation(part.position_ids, self.config, upload),
            index=ModalityIndex(part.modality, part.valid, self.sharding.add, upload),
            attend=self.sharding.attend(attend, len(row.input_ids)),
            media_positions=upload(part.media_positions),
            patches=self._upload_patches(part, upload) if len(part.grid_thw) else None,
        )

    def vision_features(self, patches: DevicePatches) -> Tensor:
        """Features [media tokens, hidden] of images and videos."""
        pixels = patches.pixels
        if pixels.dtype == paddle.uint8:
            pixels = (pixels.astype("float32") / 255.0 - patches.mean) / patches.std
        hidden = self.vision_model(pixels.astype(self.dtype), patches.rotation, patches.attend)
        resampler, pairs = self.model.resampler_model, patches.frame_pairs
        (features,) = self.vision_model.layer_runner(
            len(self.vision_model.blocks), lambda x: (resampler(x, pairs),), hidden
        )
        return features

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

    def _upload_patches(self, part: RowInputs, upload: Upload) -> DevicePatches:
        vision = self.config.vision
        assert vision is not None
        # The mean and the deviation of each channel, for each value of a patch.
        area = vision.patch_size**2
        mean, std = (
            np.repeat(np.array(values, np.float32), area) for values in (self.image_mean, self.image_std)
        )
        pairs = self.model.resampler_model.frame_pairs(part.grid_thw)
        return DevicePatches(
            pixels=upload(part.patches),
            mean=upload(mean),
            std=upload(std),
            rotation=vision_rotation(part.grid_thw, vision, upload),
            attend=self.vision_model.attention(part.grid_thw, upload),
            frame_pairs=None if pairs is None else (upload(pairs[0]), upload(pairs[1])),
        )
