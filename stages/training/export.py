"""The finished network as one file of the attempt."""

from __future__ import annotations

from typing import Any

from safetensors.torch import save_file

from stages.context import Rank
from stages.temporary import temporary_folder
from stages.training.engine import Engine


def export_weights(engine: Engine, rank: Rank, key: str, name: str) -> dict[str, Any] | None:
    """Store all fp32 weights (`key` is "weight"), or their averages, as `name`; returns its entry for the manifest.

    Collective; rank 0 writes, and the others return None. Equal weights give equal bytes.
    """
    state = {}
    for parameter in engine.tensors.names:
        whole = engine.tensors.read(parameter, key)
        if rank.rank == 0:
            state[parameter] = whole.to("cpu", copy=True).contiguous()
    if rank.rank:
        return None
    with temporary_folder() as folder:
        path = folder / name
        save_file({parameter: state[parameter] for parameter in sorted(state)}, path)
        digest = rank.storage.upload(f"{rank.folder}/attempts/{rank.attempt}/{name}", path)
    return {"path": name, "bytes": digest.bytes, "sha256": digest.sha256}
