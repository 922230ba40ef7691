"""What a training stage will need and cost on a cluster: memory, time, money, by formula."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from cluster.shapes import ClusterShape
from pipeline.estimate_failures import Losses, losses
from pipeline.estimate_reading import FirstEpoch, Images, first_epoch, read_share
from pipeline.estimate_warnings import warnings_of
from stages.models.config import AnyModel
from stages.pretrain.config import PretrainConfig
from stages.training.config import TrainingConfig, usable_ranks
from stages.training.fitting import fitting_moves
from stages.training.memory import KEPT_GATHERED, RESERVED, Memory, Network, checkpoint_bytes, itemsize, memory

ASSUMED_EFFICIENCY = 0.4
"""Where none is stated and none has been measured."""
DAY, HOUR = 86400.0, 3600.0

TPU_CORE_DAYS = {
    "ViT-H/14": {"JFT-300M": 2500},
    "ViT-L/16": {"JFT-300M": 680, "ImageNet-21k": 230},
    "R152x4": {"JFT-300M": 9900},
}
"""TPUv3-core-days that the paper's Table 2 gives for pre-training, by the model's name."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a plan is told beside the cluster's shape."""

    efficiency: float | None = None
    """Part of the GPUs' peak rate that training reaches without activation checkpointing; None assumes one."""
    efficiency_from: str = "stated"
    ceiling: float | None = None
    """Part of that rate that a product of matrices was measured to reach, which training does not exceed."""
    price: float | None = None
    """Money for a GPU and hour."""
    notice: float | None = None
    """Seconds from the notice to the end of a spot machine."""
    mtbf_hours: float | None = None
    """Hours between two failures of a machine, in the mean; None leaves failures out."""
    upload_seconds: float | None = None
    """In which a checkpoint was stored before, where no rate to the bucket is stated."""
    upload_from: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The memory of one GPU with a ZeRO stage, with or without activation checkpointing."""

    zero_stage: int
    activation_checkpointing: bool
    memory: Memory
    fits: bool
    chosen: bool
    """Whether the workflow says so."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One training stage on a cluster. Times are in seconds, sizes in bytes."""

    gpus: int
    idle_gpus: int
    micro_batch: int
    accumulation: int
    usable_bytes: float
    """Of each GPU's memory."""
    rows: list[Row]
    moves: list[str]
    """Changes that make it fit, where it does not; empty where it does, and where none is enough."""
    host_bytes: int
    """Of each node's own memory."""
    checkpoint_bytes: int
    upload_seconds: float | None
    machines: int
    read_share: float
    """Part of the data set that each machine fetches in the first epoch."""
    first_epoch: FirstEpoch | None
    """None where it is not known how many images an epoch has, or how fast storage is."""
    efficiency: float
    efficiency_from: str
    images_per_s: float
    update_seconds: float
    network_seconds: float | None
    """Of an update, for gradients and weights between nodes; None where there is one node or no rate is known."""
    days: float
    device_days: float
    tpu_core_days: dict[str, float]
    """The paper's, by data set, for its models."""
    money: float | None
    losses: Losses | None
    """To failing machines, which `days` and `money` leave out; None where it is not said how often they fail."""
    warnings: list[str]

    @property
    def chosen(self) -> Row:
        """The row that the workflow asks for."""
        return next(row for row in self.rows if row.chosen)

    def document(self) -> dict[str, Any]:
        """As JSON, with the total of each row and what it is the peak of."""
        rows = [{**asdict(row), "memory": {**asdict(row.memory), "total": row.memory.total}} for row in self.rows]
        return {**asdict(self), "rows": rows}


def estimate(
    config: TrainingConfig,
    network: Network,
    updates: int,
    shape: ClusterShape,
    terms: Terms | None = None,
    images: Images | None = None,
) -> Estimate:
    """What `updates` updates need on a cluster: on as many of its GPUs as a config that trains on GPUs has workers,
    on all of them where it trains on CPUs. `images` are an epoch's, where that is known."""
    terms = terms or Terms()
    wanted = min(shape.gpus, config.most_workers) if config.gpus_per_worker else shape.gpus
    ranks = usable_ranks(config.global_batch, wanted)
    asked, config = config, config.model_copy(update={"workers": ranks, "gpus_per_worker": 1})
    usable = shape.gpu.memory_gb * 1e9 - RESERVED
    rows = _rows(config, network, ranks, usable)
    chosen = next(row for row in rows if row.chosen)
    saved = checkpoint_bytes(config, network.parameters)
    efficiency, efficiency_from = _efficiency(terms)
    network_seconds = _network_seconds(config, network.parameters, ranks, shape)
    seconds = _update_seconds(config, network, ranks, shape, efficiency, network_seconds or 0.0)
    days = updates * seconds / DAY
    found = Estimate(
        gpus=ranks,
        idle_gpus=shape.gpus - ranks,
        micro_batch=config.micro_batch_for(ranks),
        accumulation=config.global_batch // (ranks * config.micro_batch_for(ranks)),
        usable_bytes=usable,
        rows=rows,
        moves=[] if chosen.fits else [str(move) for move in fitting_moves(config, network, ranks, "cuda", usable)],
        host_bytes=chosen.memory.host * min(shape.gpus_per_node, ranks),
        checkpoint_bytes=saved,
        upload_seconds=_upload_seconds(saved, ranks, shape),
        machines=-(-ranks // shape.gpus_per_node),
        read_share=read_share(config, min(shape.gpus_per_node, ranks) / ranks),
        first_epoch=None,
        efficiency=efficiency,
        efficiency_from=efficiency_from,
        images_per_s=config.global_batch / seconds,
        update_seconds=seconds,
        network_seconds=network_seconds,
        days=days,
        device_days=days * shape.gpus,
        tpu_core_days=_paper(config, network.model),
        money=None if terms.price is None else days * 24 * shape.gpus * terms.price,
        losses=None,
        warnings=[],
    )
    first = first_epoch(images, config, updates, shape, share=found.read_share, images_per_s=found.images_per_s)
    found = replace(found, losses=_losses(found, config, shape, terms), first_epoch=first)
    return replace(found, warnings=warnings_of(found, asked, config, shape, terms))


def _efficiency(terms: Terms) -> tuple[float, str]:
    """What training reaches of the data sheet's rate, and who says so."""
    found, source = terms.efficiency, terms.efficiency_from
    if found is None:
        found, source = ASSUMED_EFFICIENCY, "assumed"
    if terms.ceiling is not None and terms.ceiling < found:
        return terms.ceiling, "all that a product of matrices was measured to reach"
    return found, source


def _rows(config: TrainingConfig, network: Network, ranks: int, usable: float) -> list[Row]:
    rows = []
    for stage in range(4):
        if stage == 0 and (config.precision != "fp32" or config.offload != "none"):
            continue
        if stage != 3 and config.offload == "parameters":
            continue
        for again in (False, True):
            changes = {"zero_stage": stage, "activation_checkpointing": again}
            found = memory(config.model_copy(update=changes), network, ranks, "cuda")
            chosen = (stage, again) == (config.zero_stage, config.activation_checkpointing)
            rows.append(Row(**changes, memory=found, fits=found.total <= usable, chosen=chosen))
    return rows


def _update_seconds(
    config: TrainingConfig, network: Network, ranks: int, shape: ClusterShape, efficiency: float, sending: float
) -> float:
    """Seconds of an update: six operations for each multiply-add of the forward pass, eight where it is done twice."""
    peak = shape.gpu.fp32_tflops if config.precision == "fp32" else shape.gpu.half_tflops
    operations = (8 if config.activation_checkpointing else 6) * network.macs * config.global_batch
    computing = operations / (ranks * peak * 1e12 * efficiency)
    return max(computing, sending) if config.overlap_communication else computing + sending


def _network_seconds(config: TrainingConfig, parameters: int, ranks: int, shape: ClusterShape) -> float | None:
    """Seconds of an update in which a node's connection is busy.

    In a ring of m nodes each sends (m - 1) / m of the data in a reduction or a gathering, and twice that where
    everybody is given the sum, as DeepSpeed's ZeRO 0, 1 and 2 do. ZeRO 2 and 3 send at every micro-step.
    """
    nodes = -(-ranks // shape.gpus_per_node)
    if nodes == 1 or shape.network_gbit is None:
        return None
    steps = config.global_batch // (ranks * config.micro_batch_for(ranks))
    gathered_twice = parameters > KEPT_GATHERED
    # Gradients are summed in fp32; weights are gathered in what the network computes in.
    gradients = {0: 2, 1: 2, 2: 2 * steps, 3: steps}[config.zero_stage]
    weights = {0: 0, 1: 1, 2: 1, 3: (2 if gathered_twice else 1) * steps}[config.zero_stage]
    sent = (4 * gradients + itemsize(config) * weights) * parameters * (nodes - 1) / nodes
    return sent * 8 / (shape.network_gbit * 1e9)


def _upload_seconds(size: int, ranks: int, shape: ClusterShape) -> float | None:
    """Seconds until a checkpoint is in the bucket: the nodes send at once, each GPU's share being as large."""
    if shape.bucket_mb_per_s is None:
        return None
    return size * min(1.0, shape.gpus_per_node / ranks) / (shape.bucket_mb_per_s * 1e6)


def _losses(found: Estimate, config: TrainingConfig, shape: ClusterShape, terms: Terms) -> Losses | None:
    if terms.mtbf_hours is None:
        return None
    return losses(
        save_every=config.save_every,
        update_seconds=found.update_seconds,
        ranks=found.gpus,
        checkpoint_bytes=found.checkpoint_bytes,
        upload_seconds=found.upload_seconds if found.upload_seconds is not None else terms.upload_seconds,
        machines=found.machines,
        mtbf_hours=terms.mtbf_hours,
    )


def _paper(config: TrainingConfig, model: AnyModel) -> dict[str, float]:
    supervised = isinstance(config, PretrainConfig) and config.masked is None
    return dict(TPU_CORE_DAYS.get(model.title, {})) if supervised else {}
