"""du: what a root takes up, who uses it, and the roots below one prefix beside their quotas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.errors import UserError
from cluster.sizes import bytes_of
from cluster.storage import Storage, open_storage
from pipeline.cli import app
from pipeline.collection import collect_root
from pipeline.commands.base import console
from pipeline.quotas import NEAR, Quotas, parse_quotas, read_quotas, roots_under
from pipeline.settings import Settings
from pipeline.space import kind_of, space
from tests.unit.pipeline.test_removal import flow, folders, garbage, run, toys  # noqa: F401


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(f"file://{tmp_path}/lab")


def user(storage: Storage, name: str) -> Storage:
    return open_storage(f"{storage.url}/{name}")


STAGE = "stages/pretrain/0123456789abcdef0123"


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("stages/ingest/0123/shards/train-00000.tar", "data sets"),
        ("stages/ingest/0123/index/train-00000.npz", "data sets"),
        ("stages/ingest/0123/parts/00000.json", "data sets"),
        (f"{STAGE}/checkpoints/00000010-a1/rank-0000.safetensors", "checkpoints"),
        (f"{STAGE}/attempts/1/model.safetensors", "outputs"),
        (f"{STAGE}/attempts/1/MANIFEST.json", "outputs"),
        (f"{STAGE}/record-1.json", "outputs"),
        (f"{STAGE}/HEAD.json", "outputs"),
        (f"{STAGE}/attempts/1/metrics/000000.jsonl", "logs and metrics"),
        (f"{STAGE}/attempts/1/logs/rank-0000/000000.log", "logs and metrics"),
        (f"{STAGE}/attempts/1/fewshot/00000010.json", "logs and metrics"),
        (f"{STAGE}/attempts/1/attempt.json", "logs and metrics"),
        ("workflows/mine/logs/driver-1/000000.log", "logs and metrics"),
        ("workflows/mine/workflow.yaml", "workflows"),
        ("index/states/mine.000001.000000-done", "workflows"),
        ("scratch/1000-abcd/x", "scratch"),
        ("notes.txt", "other"),
    ],
)
def test_each_object_is_counted_as_what_it_is(key, kind):
    assert kind_of(key) == kind


def test_a_root_is_told_whole_with_who_uses_its_stages_and_what_gc_would_free(storage, monkeypatch):
    assert space(storage).total.objects == 0
    run(storage, flow(), "mine")
    run(storage, flow(times=2000), "theirs")
    garbage(storage, folders(storage, "mine")["second"])
    storage.write("workflows/mine/logs/driver-1/000000.log", b"x" * 5000)
    found = space(storage, largest=2)
    listed = list(storage.sizes(""))
    assert (found.total.objects, found.total.bytes) == (len(listed), sum(size for _, size in listed))
    assert sum(amount.bytes for amount in found.by_kind.values()) == found.total.bytes
    assert found.by_kind["checkpoints"].objects == 2
    assert found.by_kind["logs and metrics"].bytes >= 5000
    largest = found.stages[0]
    assert (largest.folder, largest.workflows) == (folders(storage, "theirs")["second"], ("theirs",))
    assert len(found.stages) == 2
    assert {stage.folder: stage.workflows for stage in space(storage).stages}[folders(storage, "mine")["first"]] == (
        "mine",
        "theirs",
    )
    # All of it is young.
    assert found.garbage.objects == 0
    monkeypatch.setattr("pipeline.space.OLD_SECONDS", 0.0)
    found = space(storage).garbage
    freed = collect_root(storage, older_than=0)
    assert (found.objects, found.bytes) == (4, sum(item.bytes for item in freed))


def test_it_changes_nothing(storage):
    run(storage, flow(), "mine")
    garbage(storage, folders(storage, "mine")["second"])
    before = {key: storage.read(key) for key in storage.list("")}
    space(storage)
    roots_under(storage, Quotas())
    assert {key: storage.read(key) for key in storage.list("")} == before


def test_roots_below_a_prefix_are_told_apart_and_each_byte_is_counted_once(storage):
    for name in ("anna", "lab/ben", "anna/inner"):
        run(user(storage, name), flow(), "mine")
    storage.write("anna/images/class/one.jpg", b"x" * 10_000)
    storage.write("nobodys/file", b"x")
    rows = {row.folder: row for row in roots_under(storage, Quotas(roots={"anna": 20_000}, default=1_000_000))}
    assert set(rows) == {"anna", "lab/ben", "anna/inner"}
    for folder, row in rows.items():
        own = [
            size for key, size in storage.sizes(f"{folder}/") if folder != "anna" or not key.startswith("anna/inner/")
        ]
        assert (row.amount.objects, row.amount.bytes) == (len(own), sum(own))
        assert row.active_ms is not None
    assert {folder: row.inside for folder, row in rows.items()} == {"anna": None, "lab/ben": None, "anna/inner": "anna"}
    assert rows["anna"].quota == 20_000
    assert rows["lab/ben"].share == rows["lab/ben"].amount.bytes / 1_000_000


def test_a_prefix_may_be_a_root_itself(storage):
    run(storage, flow(), "mine")
    run(user(storage, "anna"), flow(), "mine")
    rows = {row.folder: row for row in roots_under(storage, Quotas())}
    assert {folder: row.inside for folder, row in rows.items()} == {"": None, "anna": ""}
    assert sum(row.amount.objects for row in rows.values()) == len(list(storage.list("")))


def test_a_root_of_the_quota_file_that_is_not_there_yet_is_told_too(storage):
    (row,) = roots_under(storage, Quotas(roots={"carl": 1000}))
    assert (row.folder, row.amount.bytes, row.quota, row.state, row.active_ms) == ("carl", 0, 1000, "ok", None)


@pytest.mark.parametrize(("share", "state"), [(0.5, "ok"), (NEAR, "near"), (1.0, "near"), (1.01, "over")])
def test_what_is_near_its_quota_or_over_it_is_named(storage, share, state):
    storage.write("anna/stages/ingest/0123/shards/train-00000.tar", b"x" * round(1000 * share))
    assert roots_under(storage, Quotas(default=1000))[0].state == state


def test_the_quota_file_of_the_prefix_is_read_or_ones_own(storage, tmp_path):
    assert read_quotas(storage) == Quotas()
    storage.write("QUOTAS.yaml", b"{anna: 2 TB, lab/ben: 500 GB, default: 1.5 TiB}")
    found = read_quotas(storage)
    assert (found.of("anna"), found.of("lab/ben"), found.of("carl")) == (2 * 10**12, 5 * 10**11, 3 * 2**39)
    (tmp_path / "mine.yaml").write_text("anna: 1 kB")
    assert read_quotas(storage, tmp_path / "mine.yaml") == Quotas(roots={"anna": 1000})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("anna: much", "anna: got 'much', expected a size above 0 such as 500 GB"),
        ("anna: 500", "anna: got '500', expected a size"),
        ("anna: 0 GB", "anna: got '0 GB', expected a size"),
        ("anna: 5 gb", "anna: got '5 gb', expected a size"),
        ("anna: {bytes: 5}", "anna: got .*, expected a size"),
        ("- anna", "expected a size for each root's folder"),
        ("1: 2 TB", "expected a size for each root's folder"),
        ("", "expected a size for each root's folder"),
        ("anna: 1 TB\nanna: 2 TB", "'anna' is there twice"),
        ("{anna: 1 TB", "not readable as YAML"),
    ],
)
def test_a_quota_file_that_is_wrong_is_told_by_its_name_and_value(text, message):
    with pytest.raises(UserError, match=rf"^quotas.yaml(:\d+)?: .*{message}|^quotas.yaml: {message}"):
        parse_quotas(text, "quotas.yaml")


@pytest.mark.parametrize(
    ("text", "count"), [("1 B", 1), ("2kB", 2000), ("1.5 GB", 1_500_000_000), ("1 KiB", 1024), ("3 PB", 3 * 10**15)]
)
def test_sizes_are_read(text, count):
    assert bytes_of(text, "size") == count


def test_the_command_prints_tables_and_ends_with_one_where_a_root_is_over(storage, tmp_path, monkeypatch):
    monkeypatch.setattr(console, "width", 160)
    for name in ("anna", "ben"):
        run(user(storage, name), flow(), "mine")
    told = call("du", "--root", f"{storage.url}/anna")
    assert told[0] == 0
    assert "of it, `patchline gc` would free" in told[1]
    assert "used by" in told[1]
    told = call("du", "--under", storage.url)
    assert told[0] == 0
    assert "anna" in told[1]
    (tmp_path / "quotas.yaml").write_text("{anna: 1 kB, default: 1 TB}")
    status, output = call("du", "--under", f"{storage.url}/", "--quotas", str(tmp_path / "quotas.yaml"), "--json")
    assert status == 1
    rows = {row["folder"]: row for row in json.loads(output)}
    assert {name: row["state"] for name, row in rows.items()} == {"anna": "over", "ben": "ok"}
    assert rows["anna"]["amount"]["bytes"] > 1000
    status, output = call("du", "--under", storage.url, "--quotas", str(tmp_path / "quotas.yaml"))
    assert status == 1
    assert "✗ anna is" in output
    document = json.loads(call("du", "--root", f"{storage.url}/anna", "--json")[1])
    assert document["total"]["bytes"] == sum(size for _, size in user(storage, "anna").sizes(""))


def call(*words: str) -> tuple[int, str]:
    answer = CliRunner().invoke(app, list(words), terminal_width=160)
    return answer.exit_code, answer.output


def test_options_that_do_not_go_together_are_refused(storage, tmp_path):
    for words in (("--quotas", str(tmp_path / "x")), ("--under", storage.url, "--root", storage.url)):
        answer = CliRunner().invoke(app, ["du", *words])
        assert isinstance(answer.exception, UserError)


def test_the_same_in_python(tmp_path):
    settings = Settings(root=f"file://{tmp_path}/root", mlflow="")
    run(settings.storage(), flow(), "mine")
    assert space(settings.storage()).total.objects > 5
