"""Names of arrays in Hugging Face's files of ViTs, which transformers has on disk in all of its versions, and ours."""

from __future__ import annotations

from collections.abc import Iterator

from stages.models.config import ModelConfig
from stages.models.formats.detect import Telltales
from stages.models.formats.rules import Rule

BODY = "vit."
"""Before all names but the classifier's; files of the body alone have none."""
TELLTALES = Telltales(
    patch="vit.embeddings.patch_embeddings.projection.weight",
    patch_axes="DCPP",
    block=r"vit\.encoder\.layer\.(\d{1,6})\.",
    hidden="vit.encoder.layer.0.intermediate.dense.bias",
    positions="vit.embeddings.position_embeddings",
    class_token="vit.embeddings.cls_token",
    latent="no network of theirs has any",
    head="classifier.bias",
    hidden_head="vit.pooler.dense.bias",
)


def rules(config: ModelConfig, *, head: bool = True) -> Iterator[Rule]:
    """How the arrays of a network with a class token and learned positions stand in their files."""
    yield Rule("cls_token", ("vit.embeddings.cls_token",))
    yield Rule("pos_embed", ("vit.embeddings.position_embeddings",))
    yield from _both("patch_embed.proj", "vit.embeddings.patch_embeddings.projection")
    for number in range(config.depth):
        ours, theirs = f"blocks.{number}", f"vit.encoder.layer.{number}"
        attention = tuple(f"{theirs}.attention.attention.{name}" for name in ("query", "key", "value"))
        yield from _both(f"{ours}.attn.qkv", *attention)
        yield from _both(f"{ours}.attn.proj", f"{theirs}.attention.output.dense")
        yield from _both(f"{ours}.norm1", f"{theirs}.layernorm_before")
        yield from _both(f"{ours}.norm2", f"{theirs}.layernorm_after")
        yield from _both(f"{ours}.mlp.fc1", f"{theirs}.intermediate.dense")
        yield from _both(f"{ours}.mlp.fc2", f"{theirs}.output.dense")
    yield from _both("norm", "vit.layernorm")
    if config.head != "linear":
        # Their pooler, with tanh, is the hidden layer of the pre-training head.
        yield from _both("pre_logits.fc", "vit.pooler.dense")
    if head:
        yield from _both("head", "classifier")


def _both(ours: str, *theirs: str) -> Iterator[Rule]:
    for part in ("weight", "bias"):
        yield Rule(
            f"{ours}.{part}", tuple(f"{name}.{part}" for name in theirs), "stacked" if len(theirs) > 1 else "same"
        )
