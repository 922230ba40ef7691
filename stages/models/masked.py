"""The Vision Transformer that predicts what its corrupted patches show (paper, B.1.2).

Shapes: B images, D width, K corrupted patches of an image, N patches, P numbers predicted of a patch, R resolution.
"""

from __future__ import annotations

from torch import Tensor, nn, where, zeros

from stages.models.config import ModelConfig
from stages.models.masked_config import MaskedConfig
from stages.models.vit import VisionTransformer

ARRAYS = ("mask_token", "prediction.")
"""How the names of the parameters begin that a Vision Transformer does not have."""


class MaskedVisionTransformer(VisionTransformer):
    """Images [B, 3, R, R] and which patches to corrupt → predictions [B, K, P] of these. It has no head of classes."""

    def __init__(self, config: ModelConfig, resolution: int, masked: MaskedConfig) -> None:
        super().__init__(config, resolution, 0)
        self.mask_token = nn.Parameter(zeros(1, 1, config.width))
        self.prediction = nn.Linear(config.width, masked.outputs(config))

    def forward(self, images: Tensor, places: Tensor, sources: Tensor) -> Tensor:
        """`places` [B, K] are the corrupted patches, `sources` [B, K] what is there: a patch, or -1 for the mask."""
        tokens = self.encode(self.corrupt(self.patch_embed(images), places, sources))
        return self.prediction(_take(tokens[:, self.config.prefix_tokens :], places))

    def corrupt(self, patches: Tensor, places: Tensor, sources: Tensor) -> Tensor:
        """Patches' embeddings [B, N, D], before position embeddings, with others in some places."""
        others = _take(patches, sources.clamp(min=0))
        # In every image's graph, whether a patch is masked there or not: so all ranks have a gradient of the mask.
        others = where((sources < 0)[..., None], self.mask_token, others)
        return patches.scatter(1, places[..., None].expand_as(others), others)


def _take(tokens: Tensor, places: Tensor) -> Tensor:
    """Those in `places` [B, K] of all tokens [B, N, D]: [B, K, D]."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))
