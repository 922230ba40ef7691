"""`bench-data`: from a workflow to what a machine brings, what training asks for, and what to do."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from rich.console import Console

from cluster import jobs
from cluster.errors import UserError
from cluster.shapes import parse_shape
from cluster.storage import Storage, open_storage
from pipeline import cli, feeding_job
from pipeline.commands.base import console
from pipeline.config import Workflow, parse_workflow
from pipeline.display_feeding import feeding_report
from pipeline.driver import create
from pipeline.feeding import Ask, Fit, Machine, Wanted, bench_data
from pipeline.runner import Runner
from pipeline.settings import Settings
from stages.data.config import DataConfig
from stages.data.feeding import Fed
from tests.unit.pipeline.test_runner import Silent

INGEST = """
name: small
seed: 3
stages:
  ingest: {source: {kind: digits}, samples_per_shard: 400, held_out_classes: 3}
"""
PRETRAIN = """
  pretrain:
    data: ingest
    model: {width: 16, depth: 1, num_heads: 2, mlp_dim: 32, patch_size: 8}
    resolution: 16
    updates: 12
    global_batch: 32
    lr: 0.002
    warmup_updates: 2
    input: {streams: 3, window: 256, loader_threads: 1}
    save_every: 12
    log_every: 4
  finetune: {data: ingest, from: pretrain, resolution: 24, updates: 8, global_batch: 32, warmup_updates: 2, lr: 0.01}
"""
FED = Fed(
    cores=8, native=True, threads=2, copied=False, image_bytes=1000.0, storage=900.0, one_thread=300.0,
    all_threads=500.0, hand_over=9000.0,
)  # fmt: skip


def flow(text: str = INGEST + PRETRAIN) -> Workflow:
    return parse_workflow(text, "small.yaml")


def run(storage: Storage, workflow: Workflow) -> None:
    runner = Runner(storage, create(storage, workflow), workflow, owner="test", ray=False, tracker=Silent())
    assert runner.run() == "done", runner.failed


@pytest.fixture(scope="module")
def ingested(tmp_path_factory) -> Storage:
    """A root with the data set, and a pretraining on it."""
    storage = open_storage(f"file://{tmp_path_factory.mktemp('root')}")
    run(storage, parse_workflow(INGEST + PRETRAIN[: PRETRAIN.index("  finetune")], "small.yaml"))
    return storage


def two_machines(feeding, config) -> list[tuple[str, Fed]]:
    """Ranks of two machines."""
    return [("one", FED), ("one", FED), ("other", FED)]


def shown(fit: Fit) -> str:
    own = Console(width=120)
    with own.capture() as capture:
        own.print(feeding_report(fit))
    return capture.get()


def test_a_workflows_images_are_measured_here(ingested):
    fit = bench_data(flow(), ingested, seconds=0.05, ask=Ask(images_per_s=0.5))
    assert (fit.stage, fit.network, fit.machines[0].name) == ("pretrain", "ViT-16x1/8 at 16", "this machine")
    assert fit.enough
    assert fit.advice() == []
    assert "✓ enough" in shown(fit)
    assert bench_data(flow(), ingested, stage="finetune", seconds=0.05).network == "ViT-16x1/8 at 24"


LARGE = {"cores": 192, "loaders": 8, "threads": 16, "native": True, "copied": True, "image_bytes": 1.0, "storage": 9e4,
         "one_thread": 2500.0, "decoding": 90_000.0, "hand_over": 9e4, "cached": True}  # fmt: skip


def fit(config: dict | None = None, *, asks: float = 50_000.0, **changes) -> Fit:
    """Of one large machine with eight ranks."""
    wanted = Wanted(images_per_s=asks, loaders=8, source="as stated", threads=3)
    return Fit(
        stage="pretrain", network="ViT", images=1, root="file:///x", machines=(Machine(**LARGE | changes, name="m"),),
        wanted=wanted, input=DataConfig(**config or {}),
    )  # fmt: skip


def test_a_large_machine_with_threads_enough_is_enough_and_never_told_to_take_fewer():
    assert (fit().enough, fit().advice()) == (True, [])
    slow = fit(asks=95_000.0)
    assert not slow.enough
    assert all("loader_threads" not in line for line in slow.advice())


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"storage": 1000.0},
            "storage is too slow for the first epoch: store smaller images (ingest.longest_side, ingest.quality), or",
        ),
        ({"storage": 1000.0, "cached": False}, "storage is too slow: keep the shards in the cache"),
        ({"hand_over": 1000.0}, "hand-over is too slow: take more ranks, each with fewer images"),
        ({"decoding": 1000.0, "threads": 1}, "decoding is too slow: set input.loader_threads to 3"),
        ({"decoding": 1000.0, "native": False}, "decoding is too slow: install a C compiler"),
    ],
    ids=str,
)
def test_each_part_that_is_too_slow_has_a_remedy_of_its_own(changes, line):
    (told,) = fit(**changes).advice()
    assert told.startswith(line)


def test_storage_counts_in_every_epoch_where_the_cache_does_not_hold_the_data(ingested):
    for config, cached in (({}, True), ({"fetch": "samples"}, False), ({"cache_gigabytes": 1e-6}, False)):
        words = [f"pretrain.input.{name}={value}" for name, value in config.items()]
        found = bench_data(parse_workflow(INGEST + PRETRAIN, "small.yaml", words), ingested, ranks=two_machines)
        assert found.slowest.cached is cached
        assert found.slowest.feeds == 500.0
    poor = fit(storage=100.0, cached=False)
    assert (poor.enough, poor.slowest.feeds) == (False, 100.0)
    assert "MB/s, in every epoch" in shown(poor)


def test_more_machines_than_fit_a_table_are_summed_up(ingested):
    many = [(f"m{number}", replace(FED, all_threads=500.0 + number)) for number in range(16)]
    text = shown(bench_data(flow(), ingested, ranks=lambda feeding, config: many))
    assert "the slowest of 16" in text
    assert "median" in text


def test_a_workflow_for_gpus_is_measured_on_a_machine_without_one(ingested):
    words = ["pretrain.gpus_per_worker=1", "pretrain.workers=4", "pretrain.input.loader_threads=null"]
    found = bench_data(parse_workflow(INGEST + PRETRAIN, "small.yaml", words), ingested, seconds=0.05)
    assert found.slowest.feeds > 0
    assert (found.slowest.loaders, found.slowest.copied) == (4, torch.cuda.is_available())


def test_a_finetuning_is_measured_on_what_it_trains_on(ingested):
    seen = []

    def ranks(feeding, config):
        seen.append(feeding.splits)
        return two_machines(feeding, config)

    both = (INGEST + PRETRAIN).replace("resolution: 24,", "resolution: 24, train_splits: [train, validation],")
    for text in (INGEST + PRETRAIN, both):
        bench_data(parse_workflow(text, "small.yaml"), ingested, stage="finetune", ranks=ranks)
    assert seen == [("train", "held_out"), ("train", "validation", "held_out")]


@pytest.mark.parametrize("words", [{"seconds": float("inf")}, {"ask": Ask(images_per_s=float("inf"))}], ids=str)
def test_what_never_ends_is_a_mistake(ingested, words):
    with pytest.raises(UserError, match="inf: expected"):
        bench_data(flow(), ingested, ranks=two_machines, **words)


def test_the_ranks_of_a_machine_bring_what_they_bring_together(ingested):
    fit = bench_data(flow(), ingested, ranks=two_machines, ask=Ask(images_per_s=800))
    first, second = fit.machines
    assert (first.loaders, first.decoding, first.storage, first.one_thread) == (2, 1000.0, 1800.0, 300.0)
    assert (first.feeds, first.limit, fit.slowest) == (1000.0, "decoding", second)
    assert fit.wanted is not None
    # 880 images/s of a machine with one loader like the slowest one, 300 by a thread.
    assert fit.wanted.threads == 3
    assert fit.enough is False
    assert fit.advice() == ["decoding is too slow: set input.loader_threads to 3"]
    text = shown(fit)
    assert "▶ decoding, 2 threads" in text
    assert "training asks for 800 images/s a machine: as stated" in text
    assert "✗ not enough" in text


def test_a_slow_storage_is_told_apart(ingested):
    fit = bench_data(flow(), ingested, ranks=two_machines, ask=Ask(images_per_s=950))
    assert [line.partition(":")[0] for line in fit.advice()] == [
        "storage is too slow for the first epoch", "decoding is too slow",
    ]  # fmt: skip
    document = json.loads(json.dumps(fit.document()))
    assert document["machines"][1]["first_epoch"] == 500.0
    assert (document["enough"], document["wanted"]["images_per_s"]) == (False, 950)


@pytest.mark.parametrize(
    ("rates", "limit"),
    [((1.0, 2.0, 3.0), "storage"), ((2.0, 1.0, 3.0), "decoding"), ((3.0, 2.0, 1.0), "hand-over")],
)
def test_the_limit_is_the_slowest_part(rates, limit):
    storage, decoding, hand_over = rates
    machine = Machine(
        name="m", cores=1, loaders=1, threads=1, native=True, image_bytes=1.0, storage=storage, one_thread=1.0,
        decoding=decoding, hand_over=hand_over, copied=False, cached=True,
    )  # fmt: skip
    assert machine.limit == limit
    assert machine.first_epoch == 1.0


def test_what_training_asks_for_is_what_a_run_of_the_network_took(ingested):
    fit = bench_data(flow(), ingested, ranks=two_machines)
    assert fit.wanted is not None
    assert fit.wanted.source.startswith("taken by pretrain/")
    assert fit.wanted.images_per_s > 0
    other = flow((INGEST + PRETRAIN).replace("width: 16", "width: 24"))
    unknown = bench_data(other, ingested, ranks=two_machines)
    assert (unknown.wanted, unknown.enough, unknown.advice()) == (None, None, [])
    assert "what training asks for is not known" in shown(unknown)


def test_what_gpus_ask_for_is_estimated(ingested):
    shape = parse_shape("h100x16")
    fits = [
        bench_data(flow(), ingested, ranks=two_machines, ask=Ask(shape=shape, efficiency=each)) for each in (0.2, 0.4)
    ]
    asked = [fit.wanted for fit in fits]
    assert all(wanted is not None and wanted.loaders == 8 for wanted in asked)
    assert asked[1].images_per_s == pytest.approx(2 * asked[0].images_per_s)
    assert asked[0].source == "8 × H100 SXM, 20% of their rate (stated)"


def test_what_cannot_be_measured_is_told(ingested, tmp_path):
    with pytest.raises(UserError, match="--stage ingest: expected one that trains: pretrain, finetune"):
        bench_data(flow(), ingested, stage="ingest")
    with pytest.raises(UserError, match="small has no stage that trains"):
        bench_data(flow(INGEST), ingested)
    with pytest.raises(UserError, match=r"the data set of 'ingest' is not in file://.* yet"):
        bench_data(flow(), open_storage(f"file://{tmp_path}"))


def test_on_a_cluster_it_is_a_job_that_measures_a_gang(ingested, monkeypatch, capsys):
    """The job server runs the command at once, in this process, as a gang of one, which needs no Ray."""
    logs: dict[str, str] = {}

    def submit(address: str, command: str, *, submission_id: str, **_: object) -> None:
        words = shlex.split(command)
        monkeypatch.setattr(sys, "argv", ["feeding_job", words[-1]])
        try:
            feeding_job.main()
        except UserError as error:
            print(f"error: {error}")
        logs[submission_id] = f"a line of Ray's\n{capsys.readouterr().out}"

    monkeypatch.setattr(jobs, "submit", submit)
    monkeypatch.setattr(jobs, "status", lambda address, job: "SUCCEEDED")
    monkeypatch.setattr(jobs, "logs", lambda address, job: logs[job])
    settings = Settings(root=ingested.url, mlflow="http://mlflow:5000", jobs="http://127.0.0.1:8265")
    ranks = partial(feeding_job.on_cluster, settings, 0)
    fit = bench_data(flow(), ingested, seconds=0.05, ranks=ranks)
    assert (len(fit.machines), fit.slowest.loaders, fit.slowest.threads) == (1, 1, 1)
    assert fit.slowest.feeds > 0
    monkeypatch.setattr(feeding_job, "in_a_gang", lambda *_: pytest.fail("it comes to nothing"))
    monkeypatch.setattr(feeding_job, "feeding_of", raises)
    with pytest.raises(UserError, match=r"measured nothing; the end of its log:\n(.*\n)*error: no such thing"):
        bench_data(flow(), ingested, seconds=0.05, ranks=ranks)


def raises(*_: object) -> None:
    raise UserError("no such thing")


@pytest.fixture
def patchline(ingested, monkeypatch, capsys, tmp_path):
    """The command, in a folder with the workflow's file: its exit code, output and errors."""
    (tmp_path / "small.yaml").write_text(INGEST + PRETRAIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "width", 160)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["patchline", "bench-data", "small.yaml", "--root", ingested.url, *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call


def test_the_command_prints_a_table_or_json(patchline):
    code, out, _ = patchline("--seconds", "0.1", "--on", "a100-80x8")
    assert code == 0
    assert "8 × A100 80 GB, 40% of their rate (assumed)" in out
    assert all(part in out for part in ("from storage", "decoding, 1 thread", "hand-over", "is the limit"))
    code, out, _ = patchline("--seconds", "0.1", "--json", "--stage", "finetune", "--images-per-s", "5")
    assert (code, json.loads(out)["stage"], json.loads(out)["enough"]) == (0, "finetune", True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--on", "h100x8", "--images-per-s", "5"), "--on estimates what --images-per-s states: give one of them"),
        (("--gpus-per-node", "4"), "--gpus-per-node says nothing without --on"),
        (("--efficiency", "0.4"), "--efficiency says nothing without --on"),
        (("--workers", "2", "--address", "http://127.0.0.1:9"), "127.0.0.1:9"),
    ],
)
def test_words_that_make_no_sense_are_told(patchline, words, told):
    code, _, error = patchline(*words)
    assert code == 2
    assert told in error
