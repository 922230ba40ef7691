"""The weights that training begins with."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from stages.models.build import Network
from stages.models.config import AnyModel


def initialize(model: Network, seed: int) -> None:
    """Draw all weights from `seed`, as `vit_jax/models_vit.py` does, and of ResNets as flax's defaults are there.

    Xavier uniform for q, k, v (each by itself), output and MLP kernels; MLP biases N(0, 1e-6); LeCun
    normal, truncated, for patches and the head's hidden layer; position embeddings of all kinds N(0, 0.02);
    class token and last layer zero, its bias the configured one; the embedding that stands for masked patches
    N(0, 0.02); a pooling query as big_vision has it. Convolutions of ResNets: LeCun normal, truncated; norms one, but
    zero the last of each unit of a hybrid's stem, which begins as its shortcut (`vit_jax/models_resnet.py`). Every
    tensor has a generator of its own, keyed by its name, so that none depends on what else there is.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            _initialize_one(name, parameter, model.config, generator)


def _initialize_one(name: str, parameter: Tensor, config: AnyModel, generator: torch.Generator) -> None:
    kind = name.rsplit(".", 2)[-2:] if "." in name else [name, ""]
    match kind:
        case ["pos_embed" | "mask_token", _] | [_, "pos_embed"] | ["positions", _] | ["relative", _]:
            parameter.normal_(0.0, 0.02, generator=generator)
        case ["cls_token", _]:
            parameter.zero_()
        case ["head" | "prediction", "weight"]:
            parameter.zero_()
        case ["head", "bias"]:
            parameter.fill_(config.head_bias)
        case ["norm3", "weight"] if name.startswith("patch_embed.backbone."):
            parameter.zero_()
        case ["norm" | "norm1" | "norm2" | "norm3", "weight"]:
            parameter.fill_(1.0)
        case ["attn_pool", "latent"]:
            _xavier_uniform(parameter[0], generator)
        case ["qkv" | "kv" as kernels, "weight"]:
            # As many kernels as the name has letters.
            for part in parameter.chunk(len(kernels)):
                _xavier_uniform(part, generator)
        case ["fc1" | "fc2", "bias"]:
            parameter.normal_(0.0, 1e-6, generator=generator)
        case ["proj" | "conv" | "conv1" | "conv2" | "conv3", "weight"] if parameter.ndim == 4:
            _lecun_normal(parameter, parameter[0].numel(), generator)
        case ["fc", "weight"]:
            _lecun_normal(parameter, parameter.shape[1], generator)
        case [_, "weight"]:
            _xavier_uniform(parameter, generator)
        case _:
            parameter.zero_()


def _xavier_uniform(weight: Tensor, generator: torch.Generator) -> None:
    bound = math.sqrt(6.0 / (weight.shape[0] + weight.shape[1]))
    weight.uniform_(-bound, bound, generator=generator)


def _lecun_normal(weight: Tensor, fan_in: int, generator: torch.Generator) -> None:
    # Truncated at two deviations; the constant restores the variance that truncation takes, as jax does.
    deviation = math.sqrt(1.0 / fan_in) / 0.87962566103423978
    nn.init.trunc_normal_(weight, 0.0, deviation, -2 * deviation, 2 * deviation, generator=generator)
