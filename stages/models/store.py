"""Model files: fp32 weights as safetensors, and how a new model takes over weights."""

from __future__ import annotations

from dataclasses import dataclass

import safetensors.torch
from torch import Tensor

from cluster.errors import UserError
from cluster.storage.base import Storage
from stages.context import Output
from stages.models.build import Network, build
from stages.models.config import AnyModel, ModelConfig, model_config
from stages.models.download import download_weights
from stages.models.masked import ARRAYS
from stages.models.resampling import Mode, is_resampled, resample
from stages.temporary import temporary_folder


def model_bytes(state: dict[str, Tensor]) -> bytes:
    """Weights as one safetensors file: equal weights give equal bytes."""
    return safetensors.torch.save({name: state[name].float().contiguous() for name in sorted(state)})


def read_state(storage: Storage, output: Output) -> dict[str, Tensor]:
    """The weights of a model output. Raises UserError where it is none, too new, or not as its manifest says."""
    with temporary_folder() as folder:
        return safetensors.torch.load_file(download_weights(storage, output, folder))


def load_model(storage: Storage, output: Output) -> Network:
    """The model of an output, in evaluation mode; without what predicts masked patches."""
    state = {name: tensor for name, tensor in read_state(storage, output).items() if not name.startswith(ARRAYS)}
    model = build(model_config(output.meta["model"]), output.meta["resolution"], output.meta["num_classes"])
    model.load_state_dict(state)
    return model.eval()


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """What became of every array when a model took over pretrained weights."""

    loaded: tuple[str, ...]
    resampled: tuple[str, ...]
    dropped: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{len(self.loaded)} arrays loaded; resampled: {', '.join(self.resampled) or 'none'}; "
            f"dropped: {', '.join(self.dropped) or 'none'}; fresh: {', '.join(self.fresh) or 'none'}"
        )


def adapt(
    state: dict[str, Tensor],
    source: AnyModel,
    resolution: int,
    model: Network,
    mode: Mode,
    *,
    fresh_head: bool = True,
) -> Adaptation:
    """Put pretrained weights into an initialised `model` of another resolution or number of classes.

    With `fresh_head` the head, with its hidden layer, is dropped and stays as the model has it; what predicted masked
    patches is dropped too. Position embeddings are resampled from the grid of `resolution`; a ResNet has none, and
    fits any. Raises UserError naming an array that does not fit.
    """
    own = model.state_dict()
    loaded, resampled, dropped = {}, [], []
    for name, tensor in state.items():
        if fresh_head and name.startswith(("head.", "pre_logits.", *ARRAYS)):
            dropped.append(name)
            continue
        old = (source.grid(resolution), source.grid(resolution))
        if isinstance(source, ModelConfig) and old != model.grid and is_resampled(name):
            tensor = resample(name, tensor, old, model.grid, prefix_tokens=source.prefix_tokens, mode=mode)
            resampled.append(name)
        if name not in own or own[name].shape != tensor.shape:
            wanted = tuple(own[name].shape) if name in own else "no such array"
            raise UserError(f"pretrained {name} has shape {tuple(tensor.shape)}; the model has {wanted}")
        loaded[name] = tensor
    model.load_state_dict({**own, **loaded})
    fresh = tuple(name for name in own if name not in loaded)
    return Adaptation(loaded=tuple(loaded), resampled=tuple(resampled), dropped=tuple(dropped), fresh=fresh)
