"""What DeepSpeed holds of gradients in the course of an update, by formula. Light: no torch here.

Read off its code (0.19). None of it is in its documentation, and each ZeRO stage has its own ways.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stages.training.config import TrainingConfig

Device = Literal["cpu", "cuda"]

BUCKET = 500_000_000
"""Most elements that are reduced together where ZeRO does not reduce (`runtime/engine.py`)."""
ZERO_BUCKET = 100_000_000
"""Most elements that ZeRO reduces together: 400 MB in fp32, of which a GPU has two."""


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """Bytes of gradients, and of the buffers that they are sent in."""

    before: int = 0
    """Gradients that are there before the backward pass: sums of earlier micro-steps, and what is never freed."""
    each: int = 0
    """For each element whose gradient the backward pass has made so far."""
    standing: int = 0
    """Buffers that are always there."""
    filling: int = 0
    """Buffers that come with the first gradient."""
    reduced: int = 0
    """Gradients when all of them are made and are averaged over the workers."""
    reducing: int = 0
    """Buffers at that time."""
    stepped: int = 0
    """Gradients when the optimizer steps."""
    after: int = 0
    """Gradients when it has."""


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """What the formulas are made of: numbers of elements, and bytes of a number."""

    parameters: int
    held: int
    """Of the shard that this worker updates."""
    bucket: int
    narrow: int
    """Bytes of a number in forward and backward passes; sums have four."""
    shared: bool
    """Whether there are other workers to share with."""
    accumulates: bool
    buckets: int
    """Buckets that exist from the first gradient on."""


def gradients(config: TrainingConfig, parameters: int, world_size: int, device: Device) -> Gradients:
    """What one of `world_size` workers holds of so many parameters' gradients."""
    # A bucket of a GPU is whole from the first gradient on, and there are two where communication overlaps. Memory of
    # a machine is taken as it is written, which is as gradients are made.
    overlapping = 2 if config.overlap_communication else 1
    sizes = _Sizes(
        parameters=parameters,
        held=-(-parameters // world_size),
        bucket=min(ZERO_BUCKET, parameters),
        narrow=4 if config.precision == "fp32" else 2,
        shared=world_size > 1,
        accumulates=config.global_batch > world_size * config.micro_batch_for(world_size),
        buckets=overlapping if device == "cuda" else 0,
    )
    match config.zero_stage:
        case 0:
            return _without_zero(sizes)
        case 1 if config.precision == "bf16" and config.offload == "none":
            return _bf16_optimizer(sizes)
        case 1:
            return _zero_1(sizes, offloaded=config.offload != "none")
        case 2:
            return _zero_2(sizes, offloaded=config.offload != "none")
        case _:
            return _zero_3(sizes, offloaded=config.offload != "none")


def _without_zero(sizes: _Sizes) -> Gradients:
    """The network's own; all of them are copied flat to be reduced (`engine.py`, `allreduce_bucket`)."""
    every = 4 * sizes.parameters
    return Gradients(
        before=every if sizes.accumulates else 0,
        each=0 if sizes.accumulates else 4,
        reduced=every,
        reducing=min(every, 4 * BUCKET) if sizes.shared else 0,
        stepped=every,
    )


def _bf16_optimizer(sizes: _Sizes) -> Gradients:
    """The network's own in bf16 and, summed, all in fp32 for good, as one tensor with weight decay and one without.

    They are reduced in a copy of both together, unless the first alone fills a bucket.
    """
    own, sums = 2 * sizes.parameters, 4 * sizes.parameters
    return Gradients(
        before=sums + (own if sizes.accumulates else 0),
        each=0 if sizes.accumulates else 2,
        reduced=own + sums,
        reducing=sums if sizes.shared and sizes.parameters <= BUCKET else 0,
        stepped=own + sums,
        after=sums,
    )


def _zero_1(sizes: _Sizes, *, offloaded: bool) -> Gradients:
    """Summed in fp32 in the network's places, moved to the bucket at the end, from there to the shard."""
    every, shard = 4 * sizes.parameters, 4 * sizes.held
    flat = 4 * sizes.bucket if sizes.shared else 0
    return Gradients(
        before=every if sizes.accumulates else 0,
        each=0 if sizes.accumulates else 4,
        filling=4 * sizes.bucket * sizes.buckets,
        # The bucket takes the gradients' place as they move.
        reduced=every,
        reducing=4 * sizes.bucket * max(0, sizes.buckets - 1) + max(flat, 0 if offloaded else shard),
        stepped=0 if offloaded else 2 * shard,
    )


def _zero_2(sizes: _Sizes, *, offloaded: bool) -> Gradients:
    """Moved to the bucket as they are made, averaged, and moved to the shard, whose sum is in fp32.

    The bucket is in fp32, as all sums are. Averaging copies it flat where there are workers to share with.
    """
    shard = 4 * sizes.held
    kept_here = sizes.narrow < 4 or not offloaded
    flat = 4 * sizes.bucket if sizes.shared else 0
    # In fp32 the shard is copied out of the bucket when the flat copy is gone.
    together = sizes.narrow < 4 or not flat or sizes.bucket < sizes.parameters
    return Gradients(
        before=shard if sizes.accumulates and kept_here else 0,
        each=0 if sizes.buckets else 4,
        filling=4 * sizes.bucket * sizes.buckets,
        reduced=shard if kept_here and (together or sizes.accumulates) else 0,
        reducing=4 * sizes.bucket * max(1, sizes.buckets) + flat,
        # In fp32 they are copied flat once more.
        stepped=0 if offloaded else shard * (2 if sizes.narrow == 4 else 1),
    )


def _zero_3(sizes: _Sizes, *, offloaded: bool) -> Gradients:
    """As in ZeRO 2, with one bucket and the shard's fp32 sum there for good."""
    shard, bucket = 0 if offloaded else 4 * sizes.held, 4 * sizes.bucket
    return Gradients(
        before=shard,
        standing=bucket,
        reduced=shard,
        reducing=2 * bucket,
        stepped=0 if offloaded else 2 * shard,
        after=shard,
    )
