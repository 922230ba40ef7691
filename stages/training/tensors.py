"""Weights and optimizer tensors by parameter: one form for any world size, ZeRO stage and optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stages.training.config import TrainingConfig
from stages.training.manifest import Damaged
from stages.training.optimizer import state_names


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive elements of a weight or an optimizer tensor."""

    name: str
    key: str
    """"weight", or the name of an optimizer's tensor."""
    start: int
    """Of its first element, in the whole tensor laid out flat."""
    tensor: Tensor
    """fp32 [elements]."""
    shape: tuple[int, ...]
    """Of the whole tensor."""


def share(sizes: list[int], ranks: int) -> list[int]:
    """The rank that each of these goes to: largest first, always to the rank that has least so far."""
    loads, owners = [0] * ranks, [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        rank = loads.index(min(loads))
        owners[index] = rank
        loads[rank] += sizes[index]
    return owners


class Tensors:
    """The fp32 weights and optimizer tensors of a network that ZeRO has spread over the ranks.

    Made after the engine. `read`, `averaged` and what sets are collective: every rank calls them alike.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, config: TrainingConfig) -> None:
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._optimizer, self._config = optimizer, config

    @property
    def names(self) -> list[str]:
        """Names of the trained parameters, in the model's order."""
        return list(self._parameters)

    def size(self, name: str) -> int:
        """Number of elements of a parameter, also where ZeRO 3 holds only a part of it here."""
        parameter = self._parameters[name]
        return int(getattr(parameter, "ds_numel", parameter.numel()))

    def keys(self) -> tuple[str, ...]:
        """What there is of each parameter: "weight", and the names of the optimizer's tensors."""
        return ("weight", *state_names(self._config))

    def read(self, name: str, key: str) -> Tensor:
        """The whole fp32 weight, or optimizer tensor, of one parameter, where the engine computes. Do not change it."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        parameter = self._parameters[name]
        if self._config.zero_stage == 0:
            tensor = parameter.data if key == "weight" else self._optimizer.state[parameter][key]
        elif key == "weight":
            tensor = safe_get_full_fp32_param(parameter)
        else:
            tensor = safe_get_full_optimizer_state(parameter, key)
        assert tensor is not None, f"{name} has no {key}"
        return tensor.detach()

    def own(self, ranks: int, rank: int) -> list[Piece]:
        """What this rank holds, or without ZeRO its share: all ranks' pieces together are everything, each once.

        No collective; the tensors are the engine's own, to be copied before it goes on.
        """
        if self._config.zero_stage == 0:
            owners = share([self.size(name) for name in self.names], ranks)
            return [
                Piece(name=name, key=key, start=0, tensor=self.read(name, key).flatten(), shape=self.shape(name))
                for name, owner in zip(self.names, owners, strict=True)
                if owner == rank
                for key in self.keys()
            ]
        own = self._part_of_3 if self._config.zero_stage == 3 else self._part_of_flat
        return [piece for name in self.names for key in self.keys() for piece in own(name, key)]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a whole parameter."""
        parameter = self._parameters[name]
        return tuple(getattr(parameter, "ds_shape", parameter.shape))

    def _part_of_flat(self, name: str, key: str) -> list[Piece]:
        # ZeRO 1 and 2 cut the concatenation of all parameters into equal parts (`utils/tensor_fragment.py`).
        mapping = self._parameters[name]._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return []
        tensor = mapping.get_hp_fragment(None if key == "weight" else key)
        start = mapping.lp_fragment_address.start
        return [Piece(name=name, key=key, start=start, tensor=tensor.detach(), shape=self.shape(name))]

    def _part_of_3(self, name: str, key: str) -> list[Piece]:
        parameter = self._parameters[name]
        # `safe_get_local_fp32_param` would bring everything that is offloaded to the GPU (DeepSpeed 0.19).
        zero = parameter._z3_optimizer  # type: ignore[attr-defined]
        part, _ = zero._get_fp32_opt_state_partition(parameter, True, None if key == "weight" else key)
        # Every parameter is cut into equal parts, the last ones filled up.
        start = part.numel() * dist.get_rank()
        length = min(part.numel(), self.size(name) - start)
        if length <= 0:
            return []
        return [Piece(name=name, key=key, start=start, tensor=part.detach()[:length], shape=self.shape(name))]

    def restore(self, tensors: Iterable[tuple[str, str, Tensor]]) -> None:
        """Set what is given, as (parameter, key, whole tensor).

        Tensors that this optimizer does not have are left out. An average that is not among them begins with
        the weights. Raises Damaged where any other is missing.
        """
        known, seen = set(self.keys()), set[tuple[str, str]]()
        for name, key, value in tensors:
            seen.add((name, key))
            if key == "weight":
                self.set_weight(name, value)
            elif key in known:
                self._set_state(name, key, value)
        missing = {(name, key) for name in self.names for key in known} - seen
        if "average" in known and all((name, "average") in missing for name in self.names):
            for name in self.names:
                self._set_state(name, "average", self.read(name, "weight"))
                missing.discard((name, "average"))
        if missing:
            raise Damaged(f"the checkpoint lacks {', '.join(sorted('/'.join(item) for item in missing)[:3])}")

    def set_weight(self, name: str, value: Tensor) -> None:
        """Set the fp32 weight. The network's own, which may be of another precision, has to have its value already."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        parameter = self._parameters[name]
        value = value.to(parameter.device)
        if self._config.zero_stage == 0:
            parameter.data.copy_(value)
        elif self._config.zero_stage == 3:
            safe_set_local_fp32_param(parameter, _own_part(parameter, value))
        else:
            safe_set_full_fp32_param(parameter, value)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the network computes with Polyak's average in place of the weights."""
        # Without ZeRO the network's own weights are the only ones.
        kept = {n: p.data.clone() for n, p in self._parameters.items()} if self._config.zero_stage == 0 else {}
        for name in self.names:
            self._show(name, self.read(name, "average"))
        try:
            yield
        finally:
            for name in self.names:
                self._show(name, kept[name] if kept else self.read(name, "weight"))

    def _show(self, name: str, value: Tensor) -> None:
        """Let the network compute with this value. The optimizer's fp32 weight stays what it is."""
        import deepspeed

        parameter = self._parameters[name]
        if self._config.zero_stage != 3:
            parameter.data.copy_(value)
            return
        with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if dist.get_rank() == 0:
                parameter.data.copy_(value)

    def _set_state(self, name: str, key: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        parameter = self._parameters[name]
        value = value.to(parameter.device)
        if self._config.zero_stage == 0:
            self._optimizer.state[parameter][key].copy_(value)
        elif self._config.zero_stage == 3:
            safe_set_local_optimizer_state(parameter, _own_part(parameter, value), key)
        else:
            safe_set_full_optimizer_state(parameter, value, key)


def _own_part(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """This rank's part of a whole tensor under ZeRO 3, filled up with zeros.

    DeepSpeed's own way from the whole tensor fails where the last rank's part is not full (0.19).
    """
    size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
    padded = torch.zeros(size * dist.get_world_size(), dtype=value.dtype, device=value.device)
    padded[: value.numel()] = value.flatten()
    return padded.narrow(0, size * dist.get_rank(), size)
