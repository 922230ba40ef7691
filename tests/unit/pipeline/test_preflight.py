"""`preflight`: from what is found on machines to what is told of it."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from dataclasses import replace
from functools import partial
from importlib import metadata

import pytest
from rich.console import Console

from cluster import jobs
from cluster.errors import UserError
from cluster.preflight import bandwidth
from cluster.preflight.machine import Asked, Machine
from pipeline import cli, preflight_job
from pipeline import preflight as preflight_module
from pipeline.commands.base import console
from pipeline.config import parse_workflow
from pipeline.display_preflight import preflight_report
from pipeline.preflight import Length, Preflight, conditions, preflight, tracking
from pipeline.preflight_findings import judged
from pipeline.preflight_survey import Surveyed, look_there, questions
from pipeline.settings import Settings
from stages.training.reduction import Ranked
from tests.unit.cluster.preflight.test_machine import Unconditional
from tests.unit.pipeline.test_feeding import INGEST, PRETRAIN

MACHINE = Machine(
    host="a", cpu="cpu", cores=8, memory=10**11, cache="/cache", cache_free=10**12, at_once=8,
    shared_memory=10**10, open_files=65536, locked_memory=None,
    versions={"torch": "2.13.0", "ray": "2.60.0"}, written=1e9, read=2e9,
)  # fmt: skip
RANK = Ranked(host="a", local_rank=0, device="NVIDIA H100", tflops=700.0, bus=300.0, slowest=1.2, pair=40.0)
NAMES = ("a", "b", "c", "d")


def survey(**changes: Machine) -> Surveyed:
    """Four machines of two GPUs each, alike but for what is changed."""
    machines = {name: replace(MACHINE, host=name) for name in NAMES} | changes
    ranks = [replace(RANK, host=name, local_rank=number) for name in NAMES for number in (0, 1)]
    return Surveyed(machines=machines, errors={}, clocks=dict.fromkeys(NAMES, (0.001, 0.002)), ranks=ranks)


def told(found: Surveyed, *levels: str) -> list[str]:
    return [f"{item.check}: {item.told}" for item in judged(found) if item.level in (levels or ("warning", "problem"))]


def test_of_machines_that_are_in_order_nothing_is_held_against():
    found = survey()
    assert told(found) == []
    assert "all-reduce: 8 ranks, bus bandwidth 300 GB/s" in told(found, "ok")
    # Of both GPUs of a machine together.
    assert "links between machines: 80 GB/s each" in told(found, "ok")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"written": 1e8}, "bytes written to storage: b is slow: 100 MB/s, half of the machines reach 1,000"),
        ({"read": 1e9}, "bytes read from storage: b is slow: 1,000 MB/s, half of the machines reach 2,000"),
        ({"cache_free": 10**9}, "disk: b has 1.0 GB free for shards, in /cache, and 50 are wanted: mount"),
        ({"shared_memory": 64 * 2**20}, "shared memory: b has 64 MiB of shared memory, which NCCL"),
        ({"locked_memory": 8 * 2**20}, "locked memory: b lets a process lock 8 MiB of memory, and RDMA locks what it"),
        ({"open_files": 1024}, "open files: b lets a process open 1024 files: ulimit -n 65536"),
        ({"versions": {"torch": "2.12.0", "ray": "2.60.0"}}, "packages: torch: 2.12.0 on b, 2.13.0 on a, c, d: give"),
        ({"versions": {"torch": "2.13.0"}}, "packages: ray: 2.60.0 on a, c, d, not installed on b"),
    ],
    ids=str,
)
def test_a_machine_that_is_not_as_the_others_is_named(change, line):
    (found,) = told(survey(b=replace(MACHINE, host="b", **change)))
    assert found.startswith(line)


@pytest.mark.parametrize("way", ["written", "read"])
def test_slow_is_what_is_below_three_quarters_of_the_median(way):
    def of(part: float) -> list[str]:
        return told(survey(b=replace(MACHINE, host="b", **{way: part * getattr(MACHINE, way)})))

    assert len(of(0.74)) == 1
    assert of(0.76) == []


def test_a_machine_that_was_asked_for_less_is_not_compared_with_the_others():
    head = replace(MACHINE, host="head", at_once=4, written=1e8, read=1e8, cache=None, cache_free=None)
    found = survey(head=head)
    assert told(found) == []
    assert "bytes read from storage: 100 MB/s" in told(found, "ok")
    assert len(told(survey(head=replace(head, at_once=8)))) == 2


def test_the_cache_that_a_workflow_asks_for_has_to_have_room():
    assert told(survey()) == []
    lines = [item.told for item in judged(survey(), cache_gigabytes=1001) if item.check == "disk"]
    assert len(lines) == 4
    assert lines[0].startswith("a has 1000.0 GB free for shards, in /cache, and 1,001 are wanted")


def test_a_machine_that_says_nothing_and_a_clock_that_is_wrong_are_problems():
    found = replace(
        survey(),
        errors={"e": "no answer within 120 s"},
        clocks={"a": (0.0, 0.01), "b": (-5.0, 0.01), "c": (700.0, 0.01)},
    )
    assert told(found, "problem") == [
        "machines: e: no answer within 120 s", "clocks: c's is 700.0 s ahead: let NTP (chrony) set it",
    ]  # fmt: skip
    assert told(found, "warning") == ["clocks: b's is 5.0 s behind: let NTP (chrony) set it"]
    # What may be the network's doing is not held against a clock.
    assert told(replace(survey(), clocks={"a": (3.0, 2.0)})) == []


def test_slow_ranks_and_slow_links_are_named():
    ranks = survey().ranks
    slow = [*ranks[:2], replace(ranks[2], tflops=500.0, pair=10.0), *ranks[3:7], replace(ranks[7], tflops=400.0)]
    assert told(replace(survey(), ranks=slow)) == [
        "products of matrices: b is slow: 500 TFLOP/s, half of the machines reach 700",
        "products of matrices: d:1 is slow: 400 TFLOP/s, half of the machines reach 700",
        "links between machines: b is slow: 50 GB/s, half of the machines reach 80",
    ]
    (uneven,) = told(replace(survey(), ranks=[replace(rank, slowest=9.0) for rank in ranks]))
    assert uneven.startswith("all-reduce: the slowest took 9.0 times as long as the median")
    (other,) = told(replace(survey(), ranks=[replace(ranks[0], device="NVIDIA A100"), *ranks[1:]]))
    assert other.startswith("devices: NVIDIA A100, NVIDIA H100: all ranks wait for the slowest")


def of_all(**changes) -> list[str]:
    """What is held against a survey whose ranks are all like this."""
    return told(replace(survey(), ranks=[replace(rank, **changes) for rank in survey().ranks]))


def test_gpus_that_are_slow_alike_are_held_against_their_data_sheet():
    # 40 % of 989 TFLOP/s are 395.6.
    assert of_all(tflops=396.0) == []
    (line,) = of_all(tflops=395.0)
    sheet = "8 of 8 ranks are below 40% of the data sheet's 989 TFLOP/s of H100 SXM, the slowest at 395: "
    assert line.startswith(f"products of matrices: {sheet}")
    # It multiplies fp16 fast, and bf16 is what is measured; a processor has no such sheet here.
    assert of_all(tflops=3.0, device="Tesla V100-SXM2-32GB") == of_all(tflops=3.0, device="AMD EPYC") == []


def test_a_network_that_is_slow_everywhere_is_told_where_gpus_have_a_fast_one():
    assert of_all(bus=10.0) == []
    (line,) = of_all(bus=2.0)
    assert line.startswith("all-reduce: 8 ranks on 4 machines, bus bandwidth 2 GB/s, where machines with H100 SXM have")
    assert of_all(bus=2.0, device="NVIDIA L4") == []
    one = [replace(rank, host="a", bus=2.0, pair=None) for rank in survey().ranks]
    assert told(replace(survey(), ranks=one)) == []


def test_what_was_not_measured_is_told():
    assert told(replace(survey(), unmeasured="8 of 16 were free")) == ["collectives: 8 of 16 were free"]
    assert told(replace(survey(), ranks=[], unmeasured="others use the cluster")) == [
        "collectives: others use the cluster"
    ]
    assert told(replace(survey(), ranks=[RANK])) == [
        "all-reduce: there is room for one rank alone, which sends nothing"
    ]


# The whole


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(root=f"file://{tmp_path}/root", mlflow=f"sqlite:///{tmp_path}/mlflow.db")


def test_without_a_cluster_storage_alone_is_checked(settings):
    found = preflight(settings)
    assert (found.fit, [item.check for item in found.findings]) == (True, ["conditional writes"])


def test_a_storage_without_conditions_is_refused(settings):
    found = conditions(Unconditional(settings.root), "scratch/x")
    assert found.level == "problem"
    assert "does not keep the conditions of writes: If-None-Match is ignored" in found.told
    assert "Two drivers could hold one workflow" in found.told


def test_a_storage_that_is_not_there_is_a_finding_and_nobody_asks_machines(settings, tmp_path, monkeypatch):
    (tmp_path / "root").write_text("no folder")
    monkeypatch.setattr(preflight_module, "check_versions", lambda *_: None)
    found = preflight(settings, survey=lambda *_: pytest.fail("asked"), tell=lambda line: None)
    assert not found.fit
    assert found.findings[0].told.endswith("is it there, and are the credentials good?")


def test_a_tracking_server_that_does_not_answer_is_told(settings):
    found = tracking("http://127.0.0.1:9")
    assert (found.level, found.check) == ("warning", "MLflow")
    assert "does not answer" in found.told


@pytest.fixture
def cluster(settings, monkeypatch, capsys):
    """A job server that runs the command at once, in this process; machines are what the test says."""
    logs, answers, asks = {}, [survey()], list[Asked]()

    def submit(address, command, *, submission_id, **_):
        monkeypatch.setattr(sys, "argv", ["preflight_job", shlex.split(command)[-1]])
        try:
            preflight_job.main()
        except UserError as error:
            print(f"error: {error}")
        logs[submission_id] = f"a line of Ray's\n{capsys.readouterr().out}"

    def surveyed(asked: Asked, length: Length) -> Surveyed:
        assert asked.root == settings.root
        asks.append(asked)
        if isinstance(answers[-1], Exception):
            raise answers[-1]
        return answers[-1]

    monkeypatch.setattr(jobs, "submit", submit)
    monkeypatch.setattr(jobs, "status", lambda address, job: "SUCCEEDED")
    monkeypatch.setattr(jobs, "logs", lambda address, job: logs[job])
    monkeypatch.setattr(jobs, "versions", lambda address: jobs.Versions(ray=metadata.version("ray"), python=None))
    monkeypatch.setattr(preflight_job, "surveyed", surveyed)
    there = replace(settings, jobs="http://127.0.0.1:8265")
    return there, answers, asks


def test_what_a_job_says_comes_back_as_it_was(cluster):
    there, answers, _ = cluster
    found = preflight(there, survey=partial(preflight_job.on_cluster, there))
    assert found.surveyed == answers[0]
    assert found.fit
    assert "! versions" in shown(found)
    answers.append(UserError("no such thing"))
    failed = preflight(there, survey=partial(preflight_job.on_cluster, there))
    assert not failed.fit
    assert "has found nothing; the end of its log" in failed.findings[-1].told


def test_machines_are_asked_for_room_where_the_workflow_keeps_its_shards(cluster):
    there, _, asks = cluster

    def asked(*changes: str) -> list[str]:
        workflow = parse_workflow(INGEST + PRETRAIN, "small.yaml", [f"{change}" for change in changes])
        preflight(there, survey=partial(preflight_job.on_cluster, there), workflow=workflow)
        return list(asks[-1].caches)

    preflight(there, survey=partial(preflight_job.on_cluster, there))
    assert list(asks[-1].caches) == asked() == [""]
    assert asked("pretrain.input.cache=/cache/shards") == ["/cache/shards", ""]
    assert asked("pretrain.input.cache=/cache", "finetune.input.cache=/cache") == ["/cache"]


def test_what_is_said_of_the_workflow_is_judged_by_the_sizes_given(cluster, tmp_path, monkeypatch, capsys):
    there, answers, _ = cluster
    # Fast enough for images of a usual size, whatever a network of this size takes.
    answers.append(survey(**{name: replace(MACHINE, host=name, read=1e15) for name in NAMES}))
    (tmp_path / "small.yaml").write_text(INGEST + PRETRAIN)
    monkeypatch.setenv("PATCHLINE_HOME", str(tmp_path / "home"))

    def findings(*words: str) -> list[str]:
        command = ["patchline", "preflight", "--json", "--workflow", str(tmp_path / "small.yaml"), *words]
        places = ["--root", there.root, "--mlflow", there.mlflow, "--address", there.jobs]
        monkeypatch.setattr(sys, "argv", [*command, *places])
        with pytest.raises(SystemExit):
            cli.main()
        answer = capsys.readouterr().out
        return [f"{item['check']}: {item['told']}" for item in json.loads(answer)["findings"]]

    assert any("pretrain: was not judged: 'ingest' is not done: --classes would" in line for line in findings())
    sizes = ["--images", "1400", "--classes", "10"]
    assert any("pretrain: storage was not judged" in line for line in findings(*sizes))
    stated = findings(*sizes, "--image-bytes", "1e9")
    assert any("pretrain: the first epoch waits for storage" in line for line in stated)
    assert not any(line.startswith("disk") for line in stated)
    wanted = findings("-o", "pretrain.input.cache_gigabytes=2000")
    assert any(line.startswith("disk: a has 1000.0 GB free for shards, in /cache, and 2,000 are") for line in wanted)


def test_a_machine_looks_at_its_own_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(bandwidth, "PIECE", 2**16)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "of-this-machine"))
    asked = Asked(root=f"file://{tmp_path}/root", folder="scratch/x", caches=("",), seconds=0.05)
    found = look_there(asked)
    assert (found.cache, found.cache_free) == (
        f"{tmp_path}/of-this-machine/patchline-{os.getuid()}/cache",
        found.cache_free,
    )
    assert found.cache_free
    assert look_there(replace(asked, caches=("/cache",))).cache == "/cache"


def test_machines_are_asked_for_as_much_as_their_ranks_fetch():
    asked = Asked(root="s3://b", folder="x", caches=("/cache",), seconds=1)
    found = questions(asked, {"head": {"CPU": 8.0}, "node": {"CPU": 180.0, "GPU": 8.0}})
    assert {name: (own.at_once, own.caches) for name, own in found.items()} == {
        "head": (4, ()),
        "node": (32, ("/cache",)),
    }
    assert questions(asked, {"laptop": {"CPU": 8.0}})["laptop"] == replace(asked, at_once=4)


def shown(found: Preflight) -> str:
    own = Console(width=100)
    with own.capture() as capture:
        own.print(preflight_report(found))
    return capture.get()


def test_the_report_has_a_line_for_each_machine_and_the_worst_last(cluster):
    there, answers, _ = cluster
    answers.append(replace(survey(), errors={"e": "no answer within 120 s"}))
    text = shown(preflight(there, survey=partial(preflight_job.on_cluster, there)))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    assert [line.split()[0] for line in lines if line.split()[0] in NAMES] == list(NAMES)
    assert lines[-2].startswith("✗ machines")
    assert lines[-1] == "not fit for training"


def test_the_command_has_an_exit_code(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATCHLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(console, "width", 120)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["patchline", "preflight", "--root", settings.root, *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), capsys.readouterr()

    code, captured = call("--json")
    assert (code, json.loads(captured.out)["fit"]) == (0, True)
    monkeypatch.setattr(preflight_module, "broken_conditions", lambda *_: ["nothing is kept"])
    code, captured = call()
    assert (code, "not fit for training" in captured.out) == (1, True)
    code, captured = call("-o", "pretrain.lr=1")
    assert (code, "-o says nothing without --workflow" in captured.err) == (2, True)
    code, captured = call("--image-bytes", "1000")
    assert (code, "--image-bytes says nothing without --workflow" in captured.err) == (2, True)
