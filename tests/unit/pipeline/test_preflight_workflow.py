"""`preflight --workflow`: whether training would wait for the network or for storage, by the rates of a survey."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.preflight.machine import Machine
from cluster.storage import open_storage
from pipeline.config import parse_workflow
from pipeline.estimate import Estimate
from pipeline.feeding import finished_dataset
from pipeline.plan import PlannedStage, Question, plan
from pipeline.preflight_survey import Surveyed
from pipeline.preflight_workflow import _of_stage, bounds, measured_shape
from stages.data.manifest import dataset_meta
from tests.unit.pipeline.test_feeding import INGEST, PRETRAIN, run
from tests.unit.pipeline.test_preflight import MACHINE, RANK, survey


def test_the_cluster_is_taken_as_it_was_measured():
    head = replace(MACHINE, host="head", written=1e6, read=1e6)
    shape = measured_shape(survey(head=head, d=replace(MACHINE, host="d", written=0.9e9, read=1.8e9)))
    assert shape is not None
    assert (shape.gpu.title, shape.gpus, shape.gpus_per_node) == ("H100 SXM", 8, 2)
    # By the all-reduce, whose ring has all of a machine's connections: a pair of GPUs has one of them.
    assert shape.network_gbit == 8 * 300
    # Of the slowest that trains.
    assert (shape.bucket_mb_per_s, shape.read_mb_per_s) == (900.0, 1800.0)
    alone = measured_shape(replace(survey(), ranks=survey().ranks[:2]))
    assert alone is not None
    assert alone.network_gbit is None
    assert measured_shape(replace(survey(), ranks=[replace(RANK, device="AMD EPYC")])) is None


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    """A root with a data set."""
    storage = open_storage(f"file://{tmp_path_factory.mktemp('root')}")
    run(storage, parse_workflow(INGEST, "small.yaml"))
    return storage


def of_workflow(storage, text: str = INGEST + PRETRAIN, question: Question | None = None, **changes) -> list[str]:
    found = bounds(storage, parse_workflow(text, "small.yaml"), replace(survey(), **changes), question)
    return [f"{item.level}: {item.told}" for item in found]


def reading(rate: float) -> dict[str, Machine]:
    return {name: replace(machine, read=rate) for name, machine in survey().machines.items()}


DECODING = (
    "warning: decoding was not measured: `patchline bench-data WORKFLOW --on h100x{0} --gpus-per-node 2 --workers {0}` "
    "tells whether it is the limit, once the data set is there"
)


def test_a_workflow_that_waits_for_nothing_has_its_speed_told(ingested):
    pretrain, finetune, decoding = of_workflow(ingested, ranks=survey().ranks[:2], machines=reading(1e15))
    assert pretrain.startswith("ok: pretrain: ")
    assert pretrain.endswith("neither network nor storage is the limit")
    assert finetune.startswith("ok: finetune: ")
    assert decoding == DECODING.format(2)


def planned(storage, text: str, found: Surveyed) -> Estimate:
    shape = measured_shape(found)
    stages = plan(storage, parse_workflow(text, "small.yaml"), Question(shape=shape))
    return next(stage.estimate for stage in stages if stage.estimate is not None)


@pytest.mark.parametrize("streams", [3, 32])
def test_storage_is_the_limit_where_a_machine_reads_less_than_its_part_of_what_training_takes(ingested, streams: int):
    text = (INGEST + PRETRAIN).replace("streams: 3", f"streams: {streams}")
    estimate = planned(ingested, text, survey())
    output = finished_dataset(ingested, parse_workflow(text, "small.yaml"), "ingest")
    train = dataset_meta(output).splits["train"]
    # With as many streams as the batch has rows each of four machines reads its own quarter, else all of it.
    needed = estimate.images_per_s * train.bytes / train.count * {3: 1, 32: 1 / 4}[streams]
    enough, too_little = (
        [
            line
            for line in of_workflow(ingested, text, machines=reading(rate))
            if "storage" in line and "pretrain" in line
        ]
        for rate in (1.01 * needed, 0.99 * needed)
    )
    assert not any("waits for storage" in line for line in enough)
    (line,) = too_little
    assert line.startswith("warning: pretrain: the first epoch waits for storage: to fetch its images takes ")


LARGE = """
  pretrain:
    data: ingest
    model: {variant: L, patch_size: 16}
    updates: 1000
    global_batch: 4096
    workers: 64
    gpus_per_worker: 1
    precision: bf16
    zero_stage: 1
"""
MACHINES = [f"node-{number}" for number in range(8)]
EIGHT = replace(
    survey(),
    machines={name: replace(MACHINE, host=name) for name in MACHINES},
    ranks=[replace(RANK, host=name, local_rank=number) for name in MACHINES for number in range(8)],
)


def of_large(storage, found: Surveyed, **sizes) -> list[str]:
    return [
        f"{item.level}: {item.told}"
        for item in bounds(storage, parse_workflow(INGEST + LARGE, "l.yaml"), found, Question(**sizes))
    ]


def test_the_network_of_eight_healthy_machines_is_not_held_against_them(ingested):
    fine = of_large(ingested, EIGHT)
    assert fine[0].startswith("ok: pretrain: 68,5")
    slow = of_large(ingested, replace(EIGHT, ranks=[replace(rank, bus=2.0) for rank in EIGHT.ranks]))
    assert any("the network between nodes is the limit" in line for line in slow)


def test_training_is_not_faster_than_the_products_that_were_measured(ingested):
    def speed(tflops: float) -> float:
        found = replace(EIGHT, ranks=[replace(EIGHT.ranks[0], tflops=tflops), *EIGHT.ranks[1:]])
        return float(of_large(ingested, found)[0].split()[2].replace(",", ""))

    # Faster than the 40 % that are assumed: these stand. Slower: all wait for the slowest.
    assert speed(700.0) == speed(500.0)
    assert speed(98.9) == pytest.approx(speed(500.0) / 4, rel=0.001)


def test_without_a_data_set_each_stage_has_a_finding_all_the_same(tmp_path):
    storage = open_storage(f"file://{tmp_path}/root")
    pretrain, finetune = of_workflow(storage)
    assert pretrain.startswith("warning: pretrain: was not judged: 'ingest' is not done: --classes would tell")
    assert finetune.startswith("warning: finetune: was not judged: 'ingest' is not done: --classes would tell")
    sizes = {"images": 1400, "classes": 10}
    fast = {"machines": reading(1e15), "ranks": survey().ranks[:2]}
    unknown, _, _ = of_workflow(storage, question=Question(**sizes), **fast)
    assert unknown.startswith("warning: pretrain: storage was not judged: there is no data set yet")
    stated, _, _ = of_workflow(storage, question=Question(**sizes, image_bytes=100), **fast)
    assert stated.startswith("ok: pretrain: ")
    # Far too slow for images of any usual size.
    slow, *_ = of_workflow(storage, question=Question(**sizes), machines=reading(1000.0), ranks=survey().ranks[:2])
    assert slow.startswith("warning: pretrain: the first epoch waits for storage: ")


def test_what_is_done_or_trains_nothing_needs_no_judgement(ingested):
    (found,) = _of_stage(PlannedStage(name="pretrain", kind="pretrain", action="reuse", why=[], folder=""))
    assert (found.level, found.told) == ("ok", "pretrain: is done")
    assert of_workflow(ingested, INGEST) == ["ok: no stage trains"]


def test_on_devices_without_a_data_sheet_nothing_is_predicted(ingested):
    assert "of GPUs alone" in of_workflow(ingested, ranks=[replace(RANK, device="AMD EPYC")])[0]
