"""What a Vision Transformer keeps in memory for the backward pass, by formula. Light: no torch here.

Shapes are those of `vit.py`: C classes, D width, H heads, L tokens, M hidden size of an MLP, R resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

from stages.models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes of one image in training."""

    inputs: int
    """The normalised image, which the patches' convolution keeps, and the logits: there until the update is done."""
    block: int
    """All that one block keeps, its input among it."""
    token: int
    """A block's input alone, [L, D]: what is left of a block that will be computed again."""
    tail: int
    """After the last block: its output, the final norm's, and what the loss keeps."""
    working: int
    """Gradients in flight, beyond what is kept, where a block's backward pass has most of them."""

    def kept(self, blocks: int, *, checkpointing: bool) -> int:
        """What the inputs and so many blocks keep, the blocks' inputs alone with activation checkpointing."""
        return self.inputs + blocks * (self.token if checkpointing else self.block)

    def backward(self, blocks: int, *, checkpointing: bool) -> int:
        """The most in the backward pass of the last of so many blocks, when those after it are done."""
        again = self.block - self.token if checkpointing else 0
        return self.kept(blocks, checkpointing=checkpointing) + again + self.working


def activations(model: ModelConfig, resolution: int, num_classes: int, *, itemsize: int, fused: bool) -> Activations:
    """What one image needs, at `itemsize` bytes a number.

    Of a block autograd keeps, read off the operations of `vit.py`: the inputs of both norms, of qkv, of the
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
    # Going back through an MLP: the gradient that skips it, and that of fc2's input. Through attention that is
    # written out: the gradients of the softmax and of what it was given, the MLP's tensors being gone.
    working = max(token + hidden, 0 if fused else 2 * square - 2 * hidden)
    pixels = model.in_channels * resolution**2
    return Activations(
        inputs=itemsize * (pixels + num_classes) + (token // (itemsize if fused else 1) if model.dropout else 0),
        block=8 * token + 2 * hidden + scores + 16 * tokens + masks,
        token=token,
        tail=2 * token + 8 * tokens + _loss_bytes(num_classes, itemsize),
        working=working,
    )


def _loss_bytes(num_classes: int, itemsize: int) -> int:
    """Beside the logits: their fp32 copy, and the log-softmax; or the targets of several labels."""
    copy = 0 if itemsize == 4 else 4
    return num_classes * (copy + 4)
