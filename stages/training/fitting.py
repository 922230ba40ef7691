"""Changes of a run's placement that make it need less memory, with what it needs then. Light: no torch here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stages.training.config import TrainingConfig
from stages.training.memory import Device, Memory, Network, memory

Changes = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Move:
    """Fields of the config to change, and the memory with them."""

    changes: Changes
    memory: Memory

    def __str__(self) -> str:
        shown = (f"{name}={str(value).lower()}" for name, value in self.changes.items())
        return f"{' with '.join(shown)} ({self.memory.total / 1e9:.1f} GB)"


def fitting_moves(
    config: TrainingConfig, network: Network, world_size: int, device: Device, limit: float | None = None
) -> list[Move]:
    """What brings a worker's memory below `limit` bytes, the smallest changes first.

    Single changes where one of them is enough, else the first combination that is; none where nothing helps.
    Without a limit, every single change that saves memory, the micro-batch halved once.
    """

    def moved(changes: Changes) -> Move:
        return Move(changes=changes, memory=memory(config.model_copy(update=changes), network, world_size, device))

    if limit is None:
        now = memory(config, network, world_size, device).total
        found = [moved(options[0]) for options in _options(config, world_size, device)]
        return [move for move in found if move.memory.total < now]
    singles = [
        next((move for move in map(moved, options) if move.memory.total <= limit), None)
        for options in _options(config, world_size, device)
    ]
    if fitting := [move for move in singles if move is not None]:
        return fitting
    return [move for move in map(moved, _combinations(config, world_size, device)) if move.memory.total <= limit][:1]


def _options(config: TrainingConfig, world_size: int, device: Device) -> list[list[Changes]]:
    """For each field that saves memory, its changes: the smallest first. Cheaper fields come first."""
    options: list[list[Changes]] = [
        [{"micro_batch": size} for size in _smaller_micro_batches(config, world_size)],
        [{"zero_stage": stage} for stage in range(config.zero_stage + 1, 4)] if config.offload != "parameters" else [],
        [] if config.activation_checkpointing else [{"activation_checkpointing": True}],
        # On a CPU it would stay in the same memory.
        [{"offload": "optimizer"}] if device == "cuda" and config.offload == "none" and config.zero_stage else [],
    ]
    return [found for found in options if found]


def _combinations(config: TrainingConfig, world_size: int, device: Device) -> Iterator[Changes]:
    """Checkpointing, then the highest ZeRO stage, then offloading added, each with all smaller micro-batches."""
    together: Changes = {}
    base = [{}, *({"micro_batch": size} for size in _smaller_micro_batches(config, world_size))]
    additions: list[Changes] = [{"activation_checkpointing": True}, {"zero_stage": 3}]
    if device == "cuda":
        additions += [{"offload": "optimizer"}, {"offload": "parameters"}]
    for addition in additions:
        (name, value), *_ = addition.items()
        if getattr(config, name) == value or (name == "offload" and config.offload == "parameters"):
            continue
        together = together | addition
        yield from (changes | together for changes in base)


def _smaller_micro_batches(config: TrainingConfig, world_size: int) -> list[int]:
    """Halves of the micro-batch down to one image, as far as they divide a worker's rows."""
    found = [config.micro_batch_for(world_size)]
    while found[-1] > 1:
        half = config.model_copy(update={"micro_batch": found[-1] // 2})
        found.append(half.micro_batch_for(world_size))
    return found[1:]
