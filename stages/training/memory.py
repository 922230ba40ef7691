"""The memory that a training run needs on each device, by formula. Light: no torch here.

What autograd keeps is read off the network's code (`stages/models/activations.py`), what DeepSpeed keeps off its own
(here and in `gradient_memory.py`). Nothing is fitted to a measurement but LIBRARIES; docs/benchmarks.md holds it
against measured peaks.

A device does not hold everything at once: gradients grow while activations go. So there are several moments,
and the peak is the largest of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from stages.models.activations import activations
from stages.models.config import AnyModel, as_vit
from stages.models.flops import (
    forward_macs,
    masked_head_parameters,
    masked_macs,
    masked_parameters,
    parameter_count,
)
from stages.models.masked_config import MaskedConfig
from stages.training.config import TrainingConfig
from stages.training.gradient_memory import Device, gradients

KEPT_GATHERED = 500_000_000
"""Elements that ZeRO 3 keeps gathered between forward and backward: those used again within 10^9 (`zero/config.py`)."""

LIBRARIES = 105_000_000
"""Bytes, on a CPU, of what DeepSpeed imports when it makes its first engine, and of the libraries' code that the first
update brings into memory, whatever the network. As measured (docs/benchmarks.md); `plan` keeps room on GPUs apart."""

RESERVED = 1.5e9
"""Bytes of a GPU that are left to CUDA, NCCL, the libraries' workspaces and fragmentation. Not measured."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """What is trained, as far as memory is concerned."""

    model: AnyModel
    resolution: int
    num_classes: int
    masked: MaskedConfig | None = None
    """Where masked patches are predicted, and no classes."""

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        own = parameter_count(self.model, self.resolution, self.num_classes)
        return own if self.masked is None else own + masked_parameters(as_vit(self.model), self.masked)

    @property
    def macs(self) -> int:
        """Multiply-adds of one image's forward pass."""
        own = forward_macs(self.model, self.resolution, self.num_classes)
        return own if self.masked is None else own + masked_macs(as_vit(self.model), self.resolution, self.masked)

    def exaflops(self, images: int) -> float:
        """Of training on so many images: 6 operations per multiply-add and image, forward and backward."""
        return 6 * self.macs * images / 1e18


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one worker at the moment when its device holds most."""

    moment: str
    weights: int
    """What forward and backward passes compute with."""
    gradients: int
    optimizer: int
    """Its tensors, and the fp32 weights that it keeps beside lower precisions and ZeRO's shards."""
    activations: int
    buffers: int
    """What gradients are sent in; on a CPU, the images that are prepared ahead, and what the libraries take."""
    host: int
    """Beside the device, in the machine's memory: images ahead, what is offloaded, the copy that a checkpoint is
    stored from. On a CPU that copy alone, which comes on top while a checkpoint is stored."""

    @property
    def total(self) -> int:
        """All parts on the device."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers


def memory(config: TrainingConfig, network: Network, world_size: int, device: Device) -> Memory:
    """What one of `world_size` workers holds at most, with the micro-batch that the config gives it.

    On GPUs this is what torch allocates; CUDA itself, libraries and fragmentation come on top. `compile` is taken
    to save nothing. Raises UserError where the patches do not fill the image.
    """
    weights, optimizer, offloaded = _states(config, network.parameters, world_size)
    moments = _moments_of_update(config, network, world_size, device)
    moment, (kept, held, buffers) = max(moments.items(), key=lambda item: sum(item[1]))
    copied = checkpoint_bytes(config, network.parameters) // world_size
    images = _images_ahead(config, network.resolution, world_size)
    on_cpu = device == "cpu"
    return Memory(
        moment=moment,
        weights=weights,
        gradients=held,
        optimizer=optimizer + (offloaded if on_cpu else 0),
        activations=kept,
        buffers=buffers + (images + LIBRARIES if on_cpu else 0),
        host=copied + (0 if on_cpu else images + offloaded),
    )


def checkpoint_bytes(config: TrainingConfig, parameters: int) -> int:
    """Size of a checkpoint: the fp32 weights and every optimizer tensor of their shape, over all workers."""
    return 4 * (1 + _state_tensors(config)) * parameters


def _state_tensors(config: TrainingConfig) -> int:
    """Tensors that the optimizer keeps of each parameter (`optimizer.py`, `state_names`)."""
    return (2 if config.optimizer == "adamw" else 1) + (1 if config.polyak_decay else 0)


def itemsize(config: TrainingConfig) -> int:
    """Bytes of a number in forward and backward passes."""
    return 4 if config.precision == "fp32" else 2


def _states(config: TrainingConfig, parameters: int, world_size: int) -> tuple[int, int, int]:
    """Weights, optimizer and what is offloaded, in bytes."""
    size = itemsize(config)
    if config.zero_stage == 0:
        return size * parameters, 4 * _state_tensors(config) * parameters, 0
    held = -(-parameters // world_size)
    weights, optimizer, offloaded = size * parameters, 4 * (1 + _state_tensors(config)) * held, 0
    if config.zero_stage == 3 and world_size > 1:
        weights = size * (held + min(parameters, KEPT_GATHERED))
    if config.offload == "parameters":
        offloaded += size * held
        weights = size * min(parameters, KEPT_GATHERED)
    if config.offload != "none":
        # With them go the fp32 gradients of the shard, and a buffer for its new weights.
        offloaded += optimizer + (4 + size) * held
        optimizer = 0
    return weights, optimizer, offloaded


def _images_ahead(config: TrainingConfig, resolution: int, world_size: int) -> int:
    """Bytes of the update's images, and of those that the loader has prepared behind it: three bytes a pixel."""
    rows = config.global_batch // world_size
    batches = 1 + (config.input.read_ahead if config.input.loader_threads != 0 else 0)
    return (batches + (1 if config.input.mixup else 0)) * rows * 3 * resolution**2


def _moments_of_update(
    config: TrainingConfig, network: Network, world_size: int, device: Device
) -> dict[str, tuple[int, int, int]]:
    """Activations, gradients and buffers at the moments that can be the largest."""
    images, again = config.micro_batch_for(world_size), config.activation_checkpointing
    found = activations(
        network.model,
        network.resolution,
        network.num_classes,
        itemsize=itemsize(config),
        fused=device == "cuda",
        masked=network.masked,
    )
    held = gradients(config, network.parameters, world_size, device)
    units, made, filled = len(found.units), _head(network), held.standing + held.filling
    kept = found.kept(units, checkpointing=again, images=images) + images * found.tail
    moments = {"end of the forward pass": (kept, held.before, held.standing)}
    for number in range(units, 0, -1):
        unit = found.units[number - 1]
        moments[_backward_pass(number, units)] = (
            found.backward(number, checkpointing=again, images=images),
            held.before + held.each * (made + unit.early),
            filled,
        )
        made += unit.parameters
    return moments | {
        "averaging of gradients": (images * found.inputs, held.reduced, held.reducing),
        "optimizer step": (images * found.inputs, held.stepped, held.standing),
        "norm of the weights": (
            images * found.inputs,
            held.after,
            held.standing + _squares(config, network, world_size, device),
        ),
    }


def _squares(config: TrainingConfig, network: Network, world_size: int, device: Device) -> int:
    """Bytes that the engine takes for the norm of its shard: the squares and, on a CPU, these in fp64.

    Without ZeRO it squares one parameter after the other, which is little.
    """
    if config.zero_stage == 0 or (device == "cuda" and config.offload != "none"):
        return 0
    return (4 if device == "cuda" else 4 + 8) * -(-network.parameters // world_size)


def _backward_pass(number: int, units: int) -> str:
    """Name of the moment: of the last block, which comes first, of the first, or of one between them."""
    which = {1: "first block", units: "last block"}.get(number, f"block {number} of {units}")
    return f"backward pass, {which}"


def _head(network: Network) -> int:
    if network.masked is not None:
        return masked_head_parameters(as_vit(network.model), network.masked)
    return (network.model.features + 1) * network.num_classes
