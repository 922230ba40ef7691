"""Checkpoints as people ask for them: listed, audited, exported."""

from __future__ import annotations

import json
import sys
import tracemalloc
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cluster.errors import UserError
from cluster.storage import Storage, open_storage
from cluster.storage.base import file_digest
from pipeline import cli
from pipeline.checkpoints import audit, checkpoints, export
from pipeline.commands.base import console
from pipeline.config import Workflow
from pipeline.head import read_head
from pipeline.outputs import copy_output
from pipeline.status import StatusReader
from stages.training.manifest import Damaged
from tests.integration.flows import small_workflow
from tests.unit.pipeline.finished import copied, run_to_its_end

FLOW = small_workflow(
    *("pretrain.updates=12", "pretrain.save_every=4", "pretrain.keep_every=4", "pretrain.polyak_decay=0.9"),
    more="  features: {data: ingest, from: pretrain, baselines: []}\n",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A folder with a finished workflow, and its id."""
    return run_to_its_end(tmp_path_factory.mktemp("finished"), FLOW)


@pytest.fixture
def there(finished, tmp_path) -> tuple[Storage, str, Workflow]:
    """A copy of it, to be damaged."""
    folder, workflow_id = finished
    return copied(folder, tmp_path / "root"), workflow_id, FLOW


def newest(storage: Storage, workflow_id: str) -> str:
    reader = StatusReader(storage, workflow_id, [])
    reader.update()
    head = read_head(storage, reader.status.stages["pretrain"].folder)
    return head[0].checkpoint.prefix


def test_checkpoints_are_listed_with_what_they_hold(there):
    rows = checkpoints(*there)
    assert [(row.stage, row.update, row.samples, row.attempt, row.world_size) for row in rows] == [
        ("pretrain", 4, 256, 1, 1), ("pretrain", 8, 512, 1, 1), ("pretrain", 12, 768, 1, 1),
    ]  # fmt: skip
    # Weights, two moments and the average, four bytes each, and the headers.
    parameters = sum(value.numel() for value in final(there).values())
    assert 16 * parameters < rows[0].bytes < 16 * parameters + 50_000


def final(there, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    storage, _, _ = there
    (key,) = [key for key in storage.list("stages/pretrain/") if key.endswith(f"/{name}")]
    return safetensors.torch.load(storage.read(key))


def test_everything_is_whole_after_a_run(there):
    rows = list(audit(*there, fast=False))
    assert [row.problems for row in rows] == [()] * 6
    # The data set has tables, shards and indexes, the model two files, each checkpoint one; and features and labels.
    assert rows[0].files > 10
    assert [row.files for row in rows[1:]] == [2, 1, 1, 1, 2]
    assert sum(row.bytes for row in rows) > 1_000_000


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("damage", ["flipped", "short", "missing"])
def test_a_damaged_file_is_named(there, damage, fast):
    storage, workflow_id, _ = there
    key = f"{newest(storage, workflow_id)}/rank-0000.safetensors"
    body = storage.read(key)
    if damage == "missing":
        storage.delete(key)
    else:
        storage.write(key, body[:-1] if damage == "short" else body[:-1] + bytes([body[-1] ^ 1]))
    problems = [problem for row in audit(*there, fast=fast) for problem in row.problems]
    if damage == "flipped" and fast:
        assert problems == []
        return
    assert len(problems) == 1
    assert problems[0].startswith(f"{key} ")
    with pytest.raises(Damaged, match="rank-0000"):
        export(*there, str(Path(storage.url[7:]) / "out.safetensors"))


def test_damaged_shards_and_outputs_are_found_too(there):
    storage, _, _ = there
    tar = next(key for key in storage.list("stages/ingest/") if key.endswith(".tar"))
    storage.write(tar, storage.read(tar)[:-512] + bytes(511) + b"x")
    model = next(key for key in storage.list("stages/pretrain/") if key.endswith("/raw.safetensors"))
    storage.delete(model)
    features = next(key for key in storage.list("stages/features/") if key.endswith("-features.safetensors"))
    storage.write(features, storage.read(features)[:-1] + b"x")
    problems = [problem for row in audit(*there, fast=False) for problem in row.problems]
    assert len(problems) == 3
    assert tar.rsplit("/", 1)[1] in problems[0]
    assert "raw.safetensors is missing" in problems[1]
    assert problems[2].startswith(f"{features} has sha256 ")


def test_stored_features_are_copied_with_their_output(there, tmp_path):
    storage, workflow_id, flow = there
    found = copy_output(storage, workflow_id, flow, "features", str(tmp_path / "copy"))
    assert {file.path.rpartition("-")[2] for file in found.shards} == {"labels.safetensors", "features.safetensors"}
    for file in found.shards:
        assert file_digest(tmp_path / "copy" / file.path).sha256 == file.sha256


@pytest.mark.parametrize(("raw", "file"), [(False, "model.safetensors"), (True, "raw.safetensors")])
def test_the_last_checkpoints_weights_are_byte_for_byte_the_models(there, tmp_path, raw, file):
    storage, _, _ = there
    out = tmp_path / "weights" / "vit.safetensors"
    about = export(*there, str(out), raw=raw)
    (key,) = [key for key in storage.list("stages/pretrain/") if key.endswith(f"/{file}")]
    assert out.read_bytes() == storage.read(key)
    assert json.loads(out.with_suffix(".json").read_text()) == about
    assert (about["update"], about["averaged"], about["num_classes"]) == (12, not raw, 7)
    assert about["model"]["depth"] == 2


def test_an_earlier_checkpoint_and_a_stage_can_be_chosen(there, tmp_path):
    out = tmp_path / "vit.safetensors"
    assert export(*there, str(out), stage="pretrain", update=4)["update"] == 4
    assert safetensors.torch.load_file(out).keys() == final(there).keys()
    for fields, words in (
        ({"update": 5}, "no checkpoint at update 5; there are: 4, 8, 12"),
        ({"stage": "ingest"}, "stage 'ingest' of small-.* has no checkpoint; those that have: pretrain"),
    ):
        with pytest.raises(UserError, match=words):
            export(*there, str(out), **fields)
    with pytest.raises(UserError, match=r"expected a name that ends in \.safetensors"):
        export(*there, str(tmp_path / "vit.bin"))


def test_an_export_takes_the_memory_of_a_piece_and_not_of_the_model(tmp_path):
    """Of a checkpoint of 256 MB, whose largest tensor has 64 MB."""
    from stages.models.weights_out import checkpoint_tensors, write_safetensors

    storage = open_storage(f"file://{tmp_path}")
    (tmp_path / "c").mkdir()
    big = {f"blocks.{i}/weight": torch.full((16, 2**20), float(i)) for i in range(4)}
    safetensors.torch.save_file(big, tmp_path / "c" / "rank-0000.safetensors")
    del big
    manifest = {"parts": [{"path": "rank-0000.safetensors"}]}
    tracemalloc.start()
    with storage.writer("out.safetensors") as sink:
        write_safetensors(storage, checkpoint_tensors(storage, "c", manifest, "weight"), sink)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 * 2**20
    found = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert {name: float(value[0, 0]) for name, value in found.items()} == {f"blocks.{i}": float(i) for i in range(4)}


def test_the_commands_print_and_set_their_exit_codes(there, tmp_path, monkeypatch, capsys):
    storage, workflow_id, _ = there
    monkeypatch.setenv("PATCHLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(console, "width", 200)

    def patchline(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["patchline", *words, "--root", storage.url])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), capsys.readouterr().out

    code, text = patchline("checkpoints")
    assert (code, text.count("pretrain")) == (0, 6)
    code, text = patchline("checkpoints", "--json")
    assert [row["update"] for row in json.loads(text)] == [4, 8, 12]
    code, text = patchline("audit", workflow_id)
    assert (code, text.count("✓"), text.count("sha256")) == (0, 6, 6)
    code, text = patchline("export", str(tmp_path / "vit.safetensors"), "--workflow", workflow_id)
    assert code == 0
    assert "averaged weights of update 12" in text
    storage.delete(f"{newest(storage, workflow_id)}/rank-0000.safetensors")
    code, text = patchline("audit", workflow_id, "--fast")
    assert code == 1
    assert "rank-0000.safetensors is missing" in text
    code, _ = patchline("export", str(tmp_path / "vit.safetensors"))
    assert code == 2
