"""What a workflow with a stage of each kind really logs and makes is what the pages say, and in their words."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

from cluster.storage import Storage, open_storage
from pipeline.config import parse_workflow
from pipeline.exporting import export_model
from pipeline.kinds import KINDS
from pipeline.metric_names import CURVES, FIGURES, Metric, of_kind
from pipeline.record import Record, read_record
from pipeline.stage_examples import FILES
from stages.context import read_output
from stages.metrics import read_points
from tests.unit.pipeline.finished import run_to_its_end

FLOW = """
name: every-kind
stages:
  ingest: {source: {kind: digits}, samples_per_shard: 400, held_out_classes: 3, validation_fraction: 0.1}
  subset: {data: ingest, fraction: 0.5}
  other: {kind: ingest, source: {kind: digits}, samples_per_shard: 900, seed: 1}
  mixture: {data: [ingest, other], classes: apart}
  short: &training
    kind: pretrain
    data: ingest
    model: {width: 16, depth: 1, num_heads: 2, mlp_dim: 32, patch_size: 4}
    resolution: 16
    updates: 4
    global_batch: 32
    input: {streams: 1, window: 256, loader_threads: 1}
    workers: 0
    log_every: 2
    save_every: 2
    evaluate_every: 2
    polyak_decay: 0.5
  long: {<<: *training, updates: 6, fewshot: {every: 3, shots: [1], draws: 2}}
  finetune: &tuning
    {kind: finetune, data: ingest, from: short, resolution: 16, updates: 2, global_batch: 32, workers: 0,
     polyak_decay: 0.5, input: {streams: 1, window: 256, loader_threads: 1}}
  finetune-long: {<<: *tuning, from: long}
  choice: {from: [short, long]}
  summary: {from: [short, long]}
  features: {data: ingest, from: short}
  fewshot: {features: features, shots: [1, 5], draws: 2, classifiers: [least_squares, neighbours]}
  evaluate: {data: ingest, from: finetune}
  analyze: {data: ingest, from: short, images: 4, examples: 2}
  scaling: {pretrained: [short, long], finetuned: [finetune, finetune-long]}
"""
IMPORTING = "name: importing\nstages: {{import: {{path: {path}}}}}"
"""It needs a file to read when it is planned."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, list[Record]]:
    flow = parse_workflow(FLOW, "every-kind.yaml")
    folder, workflow_id = run_to_its_end(tmp_path_factory.mktemp("every-kind"), flow)
    storage = open_storage(f"file://{folder}")
    weights = tmp_path_factory.mktemp("weights") / "short.safetensors"
    export_model(storage, workflow_id, flow, str(weights), stage="short")
    run_to_its_end(folder, parse_workflow(IMPORTING.format(path=weights), "importing.yaml"))
    records = [read_record(storage, key) for key in storage.list("stages/") if re.search(r"/record-\d+\.json$", key)]
    assert {record.kind for record in records} == set(KINDS)
    return storage, records


def undescribed(named: dict[str, set[str]], metrics: tuple[Metric, ...]) -> list[str]:
    return [
        f"{kind}: {name}"
        for kind, names in named.items()
        for name in sorted(names)
        if sum(metric.has(name) for metric in of_kind(metrics, kind)) != 1
    ]


def missing(named: dict[str, set[str]], metrics: tuple[Metric, ...]) -> list[str]:
    """Those that every run of a kind has, by the pages, and this one has not."""
    return [
        f"{kind}: {metric.name}"
        for kind, names in named.items()
        for metric in of_kind(metrics, kind)
        if not metric.only and not any(map(metric.has, names))
    ]


def test_figures_are_those_of_the_pages(finished: tuple[Storage, list[Record]]):
    named = defaultdict[str, set[str]](set)
    for record in finished[1]:
        named[record.kind] |= set(record.metrics)
    # It has those of the model that it chose beside its own.
    named["choice"] -= named["pretrain"] | named["finetune"]
    assert undescribed(named, FIGURES) == []
    assert missing(named, FIGURES) == []


def test_curves_are_those_of_the_pages(finished: tuple[Storage, list[Record]]):
    storage, records = finished
    named = defaultdict[str, set[str]](set)
    # What is chosen lies where it was trained.
    for record in (record for record in records if record.kind != "choice"):
        folder = record.output_prefix.partition("/attempts/")[0]
        for key in storage.list(f"{folder}/attempts/"):
            if re.search(r"/(metrics|fewshot)/[^/]+\.jsonl$", key):
                named[record.kind] |= {point.name for point in read_points(storage, key)}
    assert {"pretrain", "finetune"} <= set(named)
    assert "fewshot/all/1_shot" in named["pretrain"]
    assert undescribed(named, CURVES) == []
    assert missing(named, CURVES) == []


def test_outputs_have_the_files_of_the_pages(finished: tuple[Storage, list[Record]]):
    storage, records = finished
    made = defaultdict[str, set[str]](set)
    for record in records:
        files = read_output(storage, record.output_prefix).manifest["files"]
        made[record.kind] |= {re.sub(r"^tables/[a-z_]+", "tables/<split>", file["path"]) for file in files}
    for kind, files in made.items():
        assert files <= set(FILES[kind]), kind
        # Of two models on the same images it draws no figure that has but one place on its axis.
        assert files == set(FILES[kind]) or kind == "scaling", kind
