"""What a network keeps in memory for the backward pass, by formula. Light: no torch here.

Shapes are those of `vit.py`: C classes, D width, H heads, L tokens, M hidden size of an MLP, R resolution. Those of
ResNets are in `resnet_activations.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from stages.models.config import AnyModel, ModelConfig
from stages.models.flops import block_parameters, patch_parameters
from stages.models.masked_config import MaskedConfig
from stages.models.resnet_activations import Unit, bit_units, figures, map_bytes, stem_units
from stages.models.resnet_config import BitConfig


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes of a network in training: of one image, but for kernels."""

    inputs: int
    """The normalised image, which the first convolution keeps, the logits and, where patches are corrupted, the
    embeddings of all of them: there until the update is done."""
    units: tuple[Unit, ...]
    """What is computed again as a whole with activation checkpointing, in the order of the forward pass: blocks of a
    Vision Transformer, bottlenecks of a ResNet, and what comes before them."""
    tail: int
    """After the last unit: its output, the final norm's, and what the loss keeps."""

    def kept(self, units: int, *, checkpointing: bool, images: int = 1) -> int:
        """What the inputs and the first units keep, the units' inputs alone with activation checkpointing."""
        return images * self.inputs + sum(
            images * (unit.entry if checkpointing else unit.kept) + (0 if checkpointing else unit.kernels)
            for unit in self.units[:units]
        )

    def backward(self, units: int, *, checkpointing: bool, images: int = 1) -> int:
        """The most in the backward pass of the last of so many units, when those after it are done."""
        last = self.units[units - 1]
        again = images * (last.kept - last.entry) + last.kernels if checkpointing else 0
        return self.kept(units, checkpointing=checkpointing, images=images) + again + images * last.working


def activations(
    model: AnyModel,
    resolution: int,
    num_classes: int,
    *,
    itemsize: int,
    fused: bool,
    masked: MaskedConfig | None = None,
) -> Activations:
    """What is needed at `itemsize` bytes a number. `fused` is attention's form on GPUs.

    With `masked` there are predictions of corrupted patches in place of the logits, made of these patches' tokens
    alone; two integers and a truth value say what stands in each of them.
    """
    if isinstance(model, BitConfig):
        last = model.features * model.grid(resolution) ** 2
        return Activations(
            inputs=itemsize * (model.in_channels * resolution**2 + num_classes),
            units=tuple(bit_units(model, resolution, itemsize)),
            # The last map, what ReLU makes of it, and the mean.
            tail=itemsize * (2 * last + model.features) + figures(1) + _loss_bytes(num_classes, itemsize),
        )
    patches, corrupted, logits, embeddings = model.grid(resolution) ** 2, 0, num_classes, 0
    if masked is not None:
        corrupted = masked.corrupted(patches)
        logits = corrupted * masked.outputs(model)
        embeddings = itemsize * patches * model.width + 17 * corrupted
    tokens = model.tokens(resolution)
    token, pixels = itemsize * tokens * model.width, model.in_channels * resolution**2
    stem = (
        [] if model.stem is None else [*stem_units(model, resolution, itemsize), _patches(model, resolution, itemsize)]
    )
    dropped = token // (itemsize if fused else 1) if model.dropout else 0
    return Activations(
        inputs=itemsize * (pixels + logits) + embeddings + dropped,
        units=(*stem, *[_block(model, resolution, itemsize, fused)] * model.depth),
        tail=2 * token + itemsize * corrupted * model.width + 8 * tokens + _loss_bytes(logits, itemsize),
    )


def _block(model: ModelConfig, resolution: int, itemsize: int, fused: bool) -> Unit:
    """One block.

    Autograd keeps, read off the operations of `vit.py`: the inputs of both norms, of qkv, of the
    output projection and of fc1, and q, k and v, each [L, D]; the inputs of GELU and of fc2, each [L, M]; four
    fp32 numbers a token, the norms' means and deviations. `fused` attention (GPUs) adds one fp32 number for each
    head and token; attention that is written out (CPUs) adds the softmax, [H, L, L]. Dropout adds what it
    multiplied by: a byte an element on GPUs, a number on CPUs.
    """
    tokens = model.tokens(resolution)
    token, hidden = itemsize * tokens * model.width, itemsize * tokens * model.mlp_dim
    square = itemsize * model.num_heads * tokens**2
    scores = 4 * model.num_heads * tokens + (square if model.position == "relative" else 0) if fused else square
    masks = (2 * token + hidden) // (itemsize if fused else 1) if model.dropout else 0
    return Unit(
        kept=8 * token + 2 * hidden + scores + 16 * tokens + masks,
        entry=token,
        # Going back through an MLP: the gradient that skips it, and that of fc2's input. Through attention that is
        # written out: the gradients of the softmax and of what it was given, the MLP's tensors being gone.
        working=max(token + hidden, 0 if fused else 2 * square - 2 * hidden),
        parameters=block_parameters(model, resolution),
        # The MLP's second kernel gets its gradient where a block's backward pass has most in flight.
        early=model.width * model.mlp_dim,
    )


def _patches(model: ModelConfig, resolution: int, itemsize: int) -> Unit:
    """The linear map of a hybrid's patches, which keeps the stem's last map."""
    assert model.stem is not None
    entry = map_bytes(model.stem.channels, resolution // model.stem.stride, itemsize)
    return Unit(kept=entry, entry=entry, working=entry, parameters=patch_parameters(model), early=0)


def _loss_bytes(num_classes: int, itemsize: int) -> int:
    """Beside the logits: their fp32 copy, and the log-softmax; or the targets of several labels."""
    copy = 0 if itemsize == 4 else 4
    return num_classes * (copy + 4)
