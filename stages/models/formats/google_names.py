"""Names of arrays in Google's npz files, and ours.

The published files have the names of flax before linen: `MultiHeadDotProductAttention_1`, `MlpBlock_3`, `LayerNorm_2`
(as timm's `models/vision_transformer.py`, `_load_weights`, reads them); these are written, since every reader knows
them. Newer ones (vision_transformer `vit_jax/models_vit.py`, big_vision `models/vit.py`) are turned into them first.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from cluster.errors import UserError
from stages.models.config import ModelConfig
from stages.models.formats.arrays import ArrayFile, Part, View
from stages.models.formats.detect import MOST_BLOCKS, Telltales
from stages.models.formats.resnet_names import BIT_ROOT, STEM_TELLTALES, stem_rules, without_numbers
from stages.models.formats.rules import Rule

PREFIXES = ("", "opt/target/", "params/", "params/img/")
"""Before the network's names: nothing, flax's optimizer, big_vision's, and its models of images and texts."""
OPTIMIZER = re.compile(r"opt/state/(step|param_states/.+)|opt/\d+(/.+)?")
"""What optimizers of flax and optax leave beside the weights."""
POSITIONS = "Transformer/posembed_input/pos_embedding"
_LINEN = {
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    "LayerNorm_1": "LayerNorm_2",
    "MlpBlock_0": "MlpBlock_3",
}
"""A block's modules as linen numbers them, and as they were before."""
TELLTALES = Telltales(
    patch="embedding/kernel",
    patch_axes="PPCD",
    block=r"Transformer/encoderblock_(\d{1,6})/",
    hidden="Transformer/encoderblock_0/MlpBlock_3/Dense_0/bias",
    positions=POSITIONS,
    class_token="cls",
    latent="MAPHead_0/probe",
    head="head/bias",
    hidden_head="pre_logits/bias",
    query="Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/bias",
    stem=STEM_TELLTALES,
)


def rules(config: ModelConfig, *, head: bool = True) -> Iterator[Rule]:
    """How the published files have the arrays of a network; without `head`, all but the last layer's."""
    if config.stem is not None:
        yield from stem_rules(config.stem)
    yield Rule("patch_embed.proj.weight", ("embedding/kernel",), "kernel")
    yield Rule("patch_embed.proj.bias", ("embedding/bias",))
    if config.pool == "token":
        yield Rule("cls_token", ("cls",))
    if config.position == "learned":
        yield Rule("pos_embed", (POSITIONS,))
    for number in range(config.depth):
        yield from _block(f"blocks.{number}", f"Transformer/encoderblock_{number}")
    yield from _norm("norm", "Transformer/encoder_norm")
    if config.pool == "attention":
        yield from _attention_pool("attn_pool", "MAPHead_0")
    if config.head != "linear":
        yield from _dense("pre_logits.fc", "pre_logits")
    if head:
        yield from _dense("head", "head")


def _block(ours: str, theirs: str) -> Iterator[Rule]:
    attention = f"{theirs}/MultiHeadDotProductAttention_1"
    yield from _norm(f"{ours}.norm1", f"{theirs}/LayerNorm_0")
    yield from _heads(f"{ours}.attn.qkv", attention, ("query", "key", "value"))
    yield from _from_heads(f"{ours}.attn.proj", f"{attention}/out")
    yield from _norm(f"{ours}.norm2", f"{theirs}/LayerNorm_2")
    yield from _mlp(f"{ours}.mlp", f"{theirs}/MlpBlock_3")


def _attention_pool(ours: str, theirs: str) -> Iterator[Rule]:
    attention = f"{theirs}/MultiHeadDotProductAttention_0"
    yield Rule(f"{ours}.latent", (f"{theirs}/probe",))
    yield from _heads(f"{ours}.q", attention, ("query",))
    yield from _heads(f"{ours}.kv", attention, ("key", "value"))
    yield from _from_heads(f"{ours}.proj", f"{attention}/out")
    yield from _norm(f"{ours}.norm", f"{theirs}/LayerNorm_0")
    yield from _mlp(f"{ours}.mlp", f"{theirs}/MlpBlock_0")


def _mlp(ours: str, theirs: str) -> Iterator[Rule]:
    yield from _dense(f"{ours}.fc1", f"{theirs}/Dense_0")
    yield from _dense(f"{ours}.fc2", f"{theirs}/Dense_1")


def _heads(ours: str, theirs: str, parts: Iterable[str]) -> Iterator[Rule]:
    yield Rule(f"{ours}.weight", tuple(f"{theirs}/{part}/kernel" for part in parts), "heads")
    yield Rule(f"{ours}.bias", tuple(f"{theirs}/{part}/bias" for part in parts), "heads_bias")


def _from_heads(ours: str, theirs: str) -> Iterator[Rule]:
    yield Rule(f"{ours}.weight", (f"{theirs}/kernel",), "from_heads")
    yield Rule(f"{ours}.bias", (f"{theirs}/bias",))


def _dense(ours: str, theirs: str) -> Iterator[Rule]:
    yield Rule(f"{ours}.weight", (f"{theirs}/kernel",), "dense")
    yield Rule(f"{ours}.bias", (f"{theirs}/bias",))


def _norm(ours: str, theirs: str) -> Iterator[Rule]:
    yield Rule(f"{ours}.weight", (f"{theirs}/scale",))
    yield Rule(f"{ours}.bias", (f"{theirs}/bias",))


def as_published(file: ArrayFile) -> tuple[View, tuple[str, ...]]:
    """A file under the published names, and the optimizer's arrays that were left out. Raises UserError."""
    prefix = _prefix(file.where, file.shapes.keys(), "embedding/kernel")
    optimizer = tuple(name for name in file.shapes if OPTIMIZER.fullmatch(name))
    wanted = [name for name in file.shapes if name not in optimizer]
    linen = not any("/MlpBlock_3/" in name or "/MultiHeadDotProductAttention_1/" in name for name in wanted)
    parts: dict[str, Part] = {}
    for name in wanted:
        for new, part in _published(file, name, prefix, linen):
            if new in parts:
                raise UserError(f"{file.where}: {name} and {parts[new].name} are both {new}")
            parts[new] = part
    return View(file, parts), optimizer


def is_bit(file: ArrayFile) -> bool:
    """Whether an archive is of a BiT's ResNet."""
    return any(without_numbers(name).endswith(BIT_ROOT) for name in file.shapes)


def as_published_bit(file: ArrayFile) -> tuple[View, tuple[str, ...]]:
    """A BiT's file under the published names, and the optimizer's arrays that were left out. Raises UserError."""
    plain = {name: without_numbers(name) for name in file.shapes}
    prefix = _prefix(file.where, plain.values(), BIT_ROOT)
    optimizer = tuple(name for name in file.shapes if OPTIMIZER.fullmatch(name))
    parts: dict[str, Part] = {}
    for name in file.shapes:
        if name not in optimizer:
            new = plain[name].removeprefix(prefix)
            if new in parts:
                raise UserError(f"{file.where}: {name} and {parts[new].name} are both {new}")
            parts[new] = Part(name)
    return View(file, parts), optimizer


def _prefix(where: str, names: Collection[str], telling: str) -> str:
    there = [prefix for prefix in PREFIXES if f"{prefix}{telling}" in names]
    if len(there) != 1:
        found = ", ".join(f"{prefix}{telling}" for prefix in there) or "none"
        raise UserError(
            f"{where}: expected one array {telling}, by itself or below {', '.join(PREFIXES[1:])}; found {found}"
        )
    return there[0]


def _published(file: ArrayFile, name: str, prefix: str, linen: bool) -> Iterator[tuple[str, Part]]:
    if not name.startswith(prefix):
        yield name, Part(name)
        return
    short = name.removeprefix(prefix)
    if short == "pos_embedding":
        yield POSITIONS, Part(name)
    elif (stacked := re.fullmatch(r"Transformer/encoderblock/(.+)", short)) is not None:
        shape = file.shapes[name]
        if len(shape) < 2 or shape[0] > MOST_BLOCKS:
            raise UserError(f"{file.where}: {name} has shape {shape}, expected one part for each of some blocks")
        for number in range(shape[0]):
            yield f"Transformer/encoderblock_{number}/{_before_linen(stacked[1], linen)}", Part(name, number)
    elif (apart := re.fullmatch(r"(Transformer/encoderblock_\d{1,6}/)(.+)", short)) is not None:
        yield apart[1] + _before_linen(apart[2], linen), Part(name)
    else:
        yield short, Part(name)


def _before_linen(name: str, linen: bool) -> str:
    module, slash, rest = name.partition("/")
    return f"{_LINEN.get(module, module) if linen else module}{slash}{rest}"
