"""`bench-data`: what a machine can feed a training stage with, and what training asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cluster.errors import UserError
from cluster.gang import run_gang
from cluster.shapes import ClusterShape
from cluster.storage import Storage
from pipeline.config import Workflow
from pipeline.consistency import has_known_model, trained_model
from pipeline.estimate import Terms, estimate
from pipeline.head import read_head
from pipeline.measured import measured_efficiency, measured_speed
from pipeline.plan import Question, plan
from pipeline.record import read_record, recorded_output
from stages.context import Output
from stages.data.bound import Host, decoding_advice, storage_advice
from stages.data.config import DataConfig
from stages.data.manifest import dataset_meta
from stages.finetune.config import FinetuneConfig
from stages.pretrain.config import PretrainConfig
from stages.training.config import usable_ranks
from stages.training.memory import Network

if TYPE_CHECKING:
    from stages.data.feeding import Fed, Feeding

Training = PretrainConfig | FinetuneConfig

MARGIN = 1.1
"""Of what training asks for, that a loader should be able to bring: images differ."""
PARTS = ("storage", "decoding", "hand-over")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """How fast training would take images, as far as somebody says it."""

    images_per_s: float | None = None
    """Of one machine."""
    shape: ClusterShape | None = None
    """GPUs whose speed is estimated."""
    efficiency: float | None = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the loaders of one machine brought, all together, in images/s."""

    name: str
    cores: int
    loaders: int
    threads: int
    """Of each loader."""
    native: bool
    image_bytes: float
    storage: float
    one_thread: float
    """Of one loader."""
    decoding: float
    hand_over: float

    @property
    def feeds(self) -> float:
        """From the cache."""
        return min(self.decoding, self.hand_over)

    @property
    def first_epoch(self) -> float:
        """While the shards come from storage for the first time."""
        return min(self.storage, self.feeds)

    @property
    def limit(self) -> str:
        """Which of the PARTS is the slowest."""
        return min(PARTS, key=dict(zip(PARTS, (self.storage, self.decoding, self.hand_over), strict=True)).__getitem__)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What training asks of a machine."""

    images_per_s: float
    loaders: int
    """Ranks on such a machine."""
    source: str
    """Where that is from."""
    threads: int
    """Of each loader that would bring it, each as fast as one here."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A training stage's images: what its machines bring, and what it asks for."""

    stage: str
    network: str
    """What is trained, and at which resolution."""
    images: int
    root: str
    machines: tuple[Machine, ...]
    wanted: Wanted | None
    input: DataConfig

    @property
    def slowest(self) -> Machine:
        """The machine for which the others would wait."""
        return min(self.machines, key=lambda machine: machine.feeds)

    @property
    def enough(self) -> bool | None:
        """Whether training would not wait once the shards are in the cache; None where nobody knows what it asks."""
        return None if self.wanted is None else self.slowest.feeds >= self.wanted.images_per_s

    def advice(self) -> list[str]:
        """What helps where it would wait: for the first epoch, and for those from the cache."""
        machine, wanted = self.slowest, self.wanted
        told = []
        if wanted is not None and machine.storage < wanted.images_per_s:
            told.append(f"storage is too slow for the first epoch: {storage_advice(self.input)}")
        if wanted is not None and machine.feeds < wanted.images_per_s:
            host = Host(cores=machine.cores, loaders=wanted.loaders, threads=machine.threads, native=machine.native)
            told.append(f"{machine.limit} is too slow: {decoding_advice(host, wanted.threads)}")
        return told

    def document(self) -> dict[str, Any]:
        """As JSON."""
        machines = [
            {**asdict(machine), "feeds": machine.feeds, "first_epoch": machine.first_epoch, "limit": machine.limit}
            for machine in self.machines
        ]
        wanted = asdict(self.wanted) if self.wanted is not None else None
        about = {name: getattr(self, name) for name in ("stage", "network", "images", "root")}
        return {**about, "machines": machines, "wanted": wanted, "enough": self.enough, "advice": self.advice()}


Ranks = Callable[["Feeding", Training], "list[tuple[str, Fed]]"]
"""Has some ranks measured, and returns each one's machine and figures."""


def bench_data(
    workflow: Workflow,
    storage: Storage,
    *,
    stage: str | None = None,
    seconds: float = 5.0,
    ask: Ask | None = None,
    ranks: Ranks | None = None,
) -> Fit:
    """Measure the images of a workflow's training stage, the first one where none is named.

    Four parts of `seconds` each, by one rank in this process where no `ranks` are given. What training asks for is what
    `ask` says, or else what a run of this network took here before. Raises UserError for a stage that does not train,
    and where its data set is not there yet.
    """
    name, config = _training_stage(workflow, stage)
    dataset = finished_dataset(storage, workflow, config.data)
    found = dataset_meta(dataset)
    classes = len(found.classes) - len(found.held_out)
    machines = _machines((ranks or _in_this_process)(feeding_of(storage, dataset, config, seconds), config))
    network = _network(workflow, name, config, classes)
    slowest = min(machines, key=lambda machine: machine.feeds)
    return Fit(
        stage=name,
        network=f"{network.model.title} at {config.resolution}" if network else f"images at {config.resolution}",
        images=found.splits["train"].count,
        root=storage.url,
        machines=machines,
        wanted=_wanted(storage, config, network, ask or Ask(), slowest),
        input=config.input,
    )


def in_a_gang(workers: int, feeding: Feeding, config: Training) -> list[tuple[str, Fed]]:
    """Have a gang on the Ray cluster measured, each worker with the room that training reserves for it."""
    from stages.training.feeding import measure_ranks

    return run_gang(
        measure_ranks,
        feeding,
        workers=workers,
        cpus=config.cpus_per_worker,
        gpus=float(config.gpus_per_worker),
        memory=config.memory_per_worker,
        labels=config.node_label,
        name="bench-data",
    )


def _in_this_process(feeding: Feeding, config: Training) -> list[tuple[str, Fed]]:
    from stages.data.feeding import measure

    return [("this machine", measure(feeding, rank=0, ranks_here=1))]


def _training_stage(workflow: Workflow, stage: str | None) -> tuple[str, Training]:
    training = {name: item for name, item in workflow.stages.items() if isinstance(item, Training)}
    if not training:
        raise UserError(f"{workflow.name} has no stage that trains, so that nothing has to be fed")
    name = stage or next(iter(training))
    if name not in training:
        raise UserError(f"--stage {name}: expected one that trains: {', '.join(training)}")
    return name, training[name]


def finished_dataset(storage: Storage, workflow: Workflow, name: str) -> Output:
    """A finished data set. Raises UserError where it is not finished."""
    planned = next(item for item in plan(storage, workflow, Question(images=1, classes=1)) if item.name == name)
    head = read_head(storage, planned.folder) if planned.action == "reuse" else None
    output = recorded_output(storage, read_record(storage, head[0].record)) if head and head[0].record else None
    if output is None:
        why = " ".join(planned.why)
        raise UserError(
            f"the data set of '{name}' is not in {storage.url} yet, so that nothing can be read ({why}): `patchline "
            f"ingest` makes it, or the workflow, whose stage '{name}' it is"
        )
    return output


def feeding_of(storage: Storage, dataset: Output, config: Training, seconds: float) -> Feeding:
    from stages.data.feeding import Feeding

    ranks = usable_ranks(config.global_batch, config.most_workers)
    return Feeding(
        storage=storage,
        dataset=dataset,
        splits=("train",),
        config=config.input,
        resolution=config.resolution,
        rows=config.global_batch // ranks,
        seconds=seconds,
        device="cuda" if config.gpus_per_worker else "cpu",
    )


def _network(workflow: Workflow, name: str, config: Training, classes: int) -> Network | None:
    """What is trained, where the workflow says it."""
    if not has_known_model(workflow.stages, name):
        return None
    masked = config.masked if isinstance(config, PretrainConfig) else None
    model = trained_model(workflow.stages, name)
    return Network(model=model, resolution=config.resolution, num_classes=classes, masked=masked)


def _machines(ranks: Sequence[tuple[str, Fed]]) -> tuple[Machine, ...]:
    """Machines, each with what its ranks brought together."""
    names = dict.fromkeys(name for name, _ in ranks)
    return tuple(_machine(name, [fed for own, fed in ranks if own == name]) for name in names)


def _machine(name: str, fed: Sequence[Fed]) -> Machine:
    return Machine(
        name=name,
        cores=fed[0].cores,
        loaders=len(fed),
        threads=fed[0].threads,
        native=all(rank.native for rank in fed),
        image_bytes=sum(rank.image_bytes for rank in fed) / len(fed),
        storage=sum(rank.storage for rank in fed),
        one_thread=sum(rank.one_thread for rank in fed) / len(fed),
        decoding=sum(rank.all_threads for rank in fed),
        hand_over=sum(rank.hand_over for rank in fed),
    )


def _wanted(storage: Storage, config: Training, network: Network | None, ask: Ask, machine: Machine) -> Wanted | None:
    if ask.images_per_s is not None:
        return _wanted_at(ask.images_per_s, machine.loaders, "as stated", machine)
    if network is None:
        return None
    if ask.shape is not None:
        efficiency, source = ask.efficiency, "stated"
        if efficiency is None and (reached := measured_efficiency(storage, config, network)):
            efficiency, source = reached
        found = estimate(config, network, 1, ask.shape, Terms(efficiency=efficiency, efficiency_from=source))
        loaders = min(ask.shape.gpus_per_node, found.gpus)
        gpus = f"{loaders} × {ask.shape.gpu.title}"
        told = f"{gpus}, {found.efficiency:.0%} of their rate ({found.efficiency_from})"
        return _wanted_at(found.images_per_s * loaders / found.gpus, loaders, told, machine)
    if measured := measured_speed(storage, config, network):
        return _wanted_at(measured[0] * machine.loaders, machine.loaders, measured[1], machine)
    return None


def _wanted_at(images_per_s: float, loaders: int, source: str, machine: Machine) -> Wanted:
    threads = math.ceil(MARGIN * images_per_s / loaders / machine.one_thread)
    return Wanted(images_per_s=images_per_s, loaders=loaders, source=source, threads=threads)
