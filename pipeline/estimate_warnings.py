"""What a plan warns of, by the estimate of a training stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.shapes import ClusterShape
from stages.training.config import TrainingConfig

if TYPE_CHECKING:
    from pipeline.estimate import Estimate, Terms


def warnings_of(
    found: Estimate, asked: TrainingConfig, config: TrainingConfig, shape: ClusterShape, terms: Terms
) -> list[str]:
    """What stands in the way of a plan or makes it dear, a line each. `asked` is the config before it was fitted."""
    warnings = []
    if found.idle_gpus:
        why = f"global_batch={config.global_batch} can be divided among {found.gpus} at most"
        if asked.gpus_per_worker and asked.most_workers < shape.gpus:
            why = f"workers={asked.most_workers} asks for no more"
        warnings.append(f"{found.idle_gpus} of {shape.gpus} GPUs idle: {why}")
    if not found.chosen.fits:
        cure = f"try {' or '.join(found.moves)}" if found.moves else "no setting makes it fit: take GPUs with more"
        needed = found.chosen.memory.total / 1e9
        warnings.append(f"does not fit: {needed:.1f} GB of {found.usable_bytes / 1e9:.1f} GB: {cure}")
    if config.precision == "bf16" and not shape.gpu.has_bf16:
        warnings.append(f"precision=bf16 on {shape.gpu.title}, which multiplies fp16 alone fast: use precision=fp16")
    if found.network_seconds is not None and found.network_seconds >= found.update_seconds:
        warnings.append("the network between nodes is the limit: the GPUs wait for gradients and weights")
    warnings += found.first_epoch.warnings if found.first_epoch is not None else []
    return warnings + _notice(found, terms) + (found.losses.warnings if found.losses is not None else [])


def _notice(found: Estimate, terms: Terms) -> list[str]:
    """Whether a checkpoint is stored before a spot machine goes: after the update that runs, the upload that may be
    under way, and its own."""
    if terms.notice is None:
        return []
    upload, source = found.upload_seconds, ""
    if upload is None and terms.upload_seconds is not None:
        upload, source = terms.upload_seconds, f" ({terms.upload_from})"
    if upload is None:
        return [f"{terms.notice:.0f} s of notice may be too short to save: --bucket-mb-per-s would tell"]
    needed = found.update_seconds + 2 * upload
    if needed <= terms.notice:
        return []
    return [
        f"{terms.notice:.0f} s of notice are too short to save, which takes {needed:.0f} s{source}: a lost machine "
        "costs what came after the newest checkpoint; lower save_every"
    ]
