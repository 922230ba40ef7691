"""`bench-data`: what a machine can feed a training stage with, and what training asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cluster.errors import UserError
from cluster.gang import run_gang
from cluster.machine import cores
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
from stages.data.bound import SMALLER, Host, decoding_advice, storage_advice
from stages.data.config import DataConfig
from stages.data.manifest import dataset_meta
from stages.finetune.config import FinetuneConfig
from stages.pretrain.config import PretrainConfig
from stages.training.config import usable_ranks
from stages.training.memory import Network

if TYPE_CHECKING:
    from stages.data.feeding import Fed, Feeding

Training = PretrainConfig | FinetuneConfig

GPUS_PER_NODE = 8
"""Where nobody says how many."""
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
    copied: bool
    """Whether batches went to GPUs."""
    image_bytes: float
    storage: float
    one_thread: float
    """Of one loader."""
    decoding: float
    hand_over: float
    cached: bool
    """Whether storage is asked in the first epoch alone: shards come whole, and all of them fit into the cache."""

    def rate(self, part: str) -> float:
        """Of one of the PARTS."""
        return {"storage": self.storage, "decoding": self.decoding, "hand-over": self.hand_over}[part]

    @property
    def feeds(self) -> float:
        """In every epoch but the first."""
        return min(self.decoding, self.hand_over, *([] if self.cached else [self.storage]))

    @property
    def first_epoch(self) -> float:
        """While the shards come from storage for the first time."""
        return min(self.rate(part) for part in PARTS)

    @property
    def limit(self) -> str:
        """Which of the PARTS is the slowest."""
        return min(PARTS, key=self.rate)


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
        """Whether training would not wait, the first epoch aside; None where nobody knows what it asks."""
        return None if self.wanted is None else self.slowest.feeds >= self.wanted.images_per_s

    def advice(self) -> list[str]:
        """What helps where it would wait: a line for each part that is too slow on some machine."""
        if self.wanted is None:
            return []
        told = []
        for part in PARTS:
            machine = min(self.machines, key=lambda machine: machine.rate(part))
            if machine.rate(part) < self.wanted.images_per_s:
                when = " for the first epoch" if part == "storage" and machine.cached else ""
                told.append(f"{part} is too slow{when}: {self._remedy(part, machine, self.wanted)}")
        return told

    def _remedy(self, part: str, machine: Machine, wanted: Wanted) -> str:
        if part == "storage" and machine.cached:
            return f"{SMALLER}, or bring the bucket nearer; later epochs come from the cache"
        if part == "storage":
            return storage_advice(self.input)
        if part == "hand-over":
            return "take more ranks, each with fewer images, or machines with faster memory"
        host = Host(cores=machine.cores, loaders=wanted.loaders, threads=machine.threads, native=machine.native)
        return decoding_advice(self.input, host, wanted.threads)

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

    Four parts of `seconds` each: in this process, with the threads of all ranks of a machine, where no `ranks` are
    given. What training asks for is what `ask` says, or else what a run of this network took here before. Raises
    UserError for a stage that does not train, and where its data set is not there yet.
    """
    if not math.isfinite(seconds):
        raise UserError(f"--seconds {seconds}: expected a number of seconds for each part")
    ask = ask or Ask()
    name, config = _training_stage(workflow, stage)
    dataset = finished_dataset(storage, workflow, config.data)
    found = dataset_meta(dataset)
    network = _network(workflow, name, config, len(found.classes) - len(found.held_out))
    feeding = feeding_of(storage, dataset, config, seconds)
    loaders = _loaders(config, ask)
    fed = ranks(feeding, config) if ranks is not None else [("this machine", _here(feeding, config, loaders))]
    splits = [found.splits[split] for split in feeding.splits]
    cached = config.input.fetch == "shards" and sum(own.bytes for own in splits) <= config.input.cache_gigabytes * 1e9
    machines = _machines(fed, cached=cached, loaders=loaders if ranks is None else None)
    slowest = min(machines, key=lambda machine: machine.feeds)
    return Fit(
        stage=name,
        network=f"{network.model.title} at {config.resolution}" if network else f"images at {config.resolution}",
        images=sum(own.count for own in splits),
        root=storage.url,
        machines=machines,
        wanted=_wanted(storage, config, network, ask, slowest),
        input=config.input,
    )


def _loaders(config: Training, ask: Ask) -> int:
    """Ranks of training that share a machine."""
    ranks = usable_ranks(config.global_batch, config.most_workers)
    if ask.shape is not None:
        return min(ask.shape.gpus_per_node, ask.shape.gpus)
    return min(ranks, GPUS_PER_NODE if config.gpus_per_worker else cores())


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


def _here(feeding: Feeding, config: Training, loaders: int) -> Fed:
    """One process of this machine, with the threads of so many loaders."""
    from stages.data.feeding import measure

    threads = config.input.threads(loaders) * loaders
    # More threads than cores decode no faster.
    return measure(feeding, threads=min(threads, max(cores(), config.input.threads(loaders))))


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
    """What is to be measured of a training stage's images. Picklable."""
    from stages.data.feeding import Feeding

    ranks, splits = usable_ranks(config.global_batch, config.most_workers), dataset_meta(dataset).splits
    own = ("train",) if isinstance(config, PretrainConfig) else (*config.train_splits, "held_out")
    return Feeding(
        storage=storage,
        dataset=dataset,
        splits=tuple(name for name in own if name in splits),
        config=config.input,
        resolution=config.resolution,
        rows=config.global_batch // ranks,
        seconds=seconds,
        gpus=config.gpus_per_worker > 0,
    )


def _network(workflow: Workflow, name: str, config: Training, classes: int) -> Network | None:
    """What is trained, where the workflow says it."""
    if not has_known_model(workflow.stages, name):
        return None
    masked = config.masked if isinstance(config, PretrainConfig) else None
    model = trained_model(workflow.stages, name)
    return Network(model=model, resolution=config.resolution, num_classes=classes, masked=masked)


def _machines(ranks: Sequence[tuple[str, Fed]], *, cached: bool, loaders: int | None) -> tuple[Machine, ...]:
    """Machines, each with what its ranks brought together; `loaders` where one process stands for so many."""
    names = dict.fromkeys(name for name, _ in ranks)
    return tuple(_machine(name, [fed for own, fed in ranks if own == name], cached, loaders) for name in names)


def _machine(name: str, fed: Sequence[Fed], cached: bool, loaders: int | None) -> Machine:
    return Machine(
        name=name,
        cores=fed[0].cores,
        loaders=loaders or len(fed),
        threads=fed[0].threads if loaders is None else max(1, fed[0].threads // loaders),
        native=all(rank.native for rank in fed),
        copied=all(rank.copied for rank in fed),
        image_bytes=sum(rank.image_bytes for rank in fed) / len(fed),
        storage=sum(rank.storage for rank in fed),
        one_thread=sum(rank.one_thread for rank in fed) / len(fed),
        decoding=sum(rank.all_threads for rank in fed),
        hand_over=sum(rank.hand_over for rank in fed),
        cached=cached,
    )


def _wanted(storage: Storage, config: Training, network: Network | None, ask: Ask, machine: Machine) -> Wanted | None:
    if ask.images_per_s is not None:
        if not math.isfinite(ask.images_per_s):
            raise UserError(f"--images-per-s {ask.images_per_s}: expected how many images training takes")
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
