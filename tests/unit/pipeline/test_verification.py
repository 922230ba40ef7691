"""verify and get-output, of a real training: what was done comes out again, and what is stored can be taken along."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.storage import Storage, open_storage
from pipeline import cli
from pipeline.commands.base import console
from pipeline.config import Workflow
from pipeline.head import read_head
from pipeline.outputs import copy_output, get_output
from pipeline.status import StatusReader
from pipeline.verification import verify
from stages.context import canonical_json, read_output, sha256
from stages.data.dataset import stored_shards
from stages.training.manifest import Damaged
from tests.integration.flows import small_workflow
from tests.unit.pipeline.finished import copied, run_to_its_end

SETTINGS = [
    *("pretrain.updates=12", "pretrain.save_every=4", "pretrain.keep_every=4", "pretrain.log_every=2"),
    "pretrain.polyak_decay=0.9",
]
FLOW = small_workflow(*SETTINGS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A folder with a finished workflow, and its id."""
    return run_to_its_end(tmp_path_factory.mktemp("finished"), FLOW)


@pytest.fixture
def there(finished, tmp_path) -> tuple[Storage, str, Workflow]:
    """A copy of it, to be damaged."""
    folder, workflow_id = finished
    return copied(folder, tmp_path / "root"), workflow_id, FLOW


@pytest.fixture
def patchline(there, tmp_path, monkeypatch, capsys):
    """The command, run in this process."""
    monkeypatch.setenv("PATCHLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(console, "width", 200)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["patchline", *words, "--root", there[0].url])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


def pretrained(there) -> str:
    """The folder of the training stage."""
    reader = StatusReader(there[0], there[1], [])
    reader.update()
    return str(reader.status.stages["pretrain"].folder)


def everything(storage: Storage) -> dict[str, bytes]:
    return {key: storage.read(key) for key in storage.list("")}


# verify


@pytest.mark.parametrize(
    ("start", "window"), [(None, (8, 12)), (4, (4, 8)), (0, (0, 4))], ids=["the last one", "within", "the first one"]
)
def test_a_window_comes_out_again_bit_for_bit_and_leaves_nothing(there, start, window):
    before = everything(there[0])
    found = verify(*there, "pretrain", start=start)
    assert (found.start, found.end) == window
    assert found.exact
    assert (found.problems, found.differs, found.losses) == ((), (), 2)
    assert everything(there[0]) == before


def test_other_packages_are_told_and_compared_within_rounding(there):
    storage, _, _ = there
    key = f"{pretrained(there)}/attempts/1/attempt.json"
    note = json.loads(storage.read(key))
    note["builds"]["torch"] = "1.0"
    storage.write(key, json.dumps(note).encode())
    shift_loss(there, 10, 1e-6)
    found = verify(*there, "pretrain")
    assert found.problems == ()
    assert [line for line in found.differs if line.startswith("torch: 1.0 → ")]
    assert not found.exact
    assert found.weights_equal
    shift_loss(there, 10, 1e-4)
    assert "update 10 has loss" in verify(*there, "pretrain").problems[0]


def test_with_dropout_another_division_of_the_batch_is_another_training(there):
    storage, workflow_id, _ = there
    divided = small_workflow(*SETTINGS, "pretrain.micro_batch=16")
    with pytest.raises(UserError, match=r"dropout=0\.1, whose masks vary with micro_batch: None → 16: run it again as"):
        verify(storage, workflow_id, divided, "pretrain")


def shift_loss(there, update: int, by: float) -> None:
    """Change the stored loss of an update."""
    storage, folder = there[0], pretrained(there)
    for key in list(storage.list(f"{folder}/attempts/1/metrics/")):
        points = [json.loads(line) for line in storage.read(key).splitlines()]
        for point in points:
            point["value"] += by if (point["name"], point["step"]) == ("train/loss", update) else 0
        storage.write(key, "".join(json.dumps(point) + "\n" for point in points).encode())


def test_a_loss_a_cursor_and_weights_that_are_others_are_found(there):
    storage, _, _ = there
    folder = pretrained(there)
    shift_loss(there, 10, 1e-7)
    newest = read_head(storage, folder)[0].checkpoint.prefix
    manifest = json.loads(storage.read(f"{newest}/MANIFEST.json"))
    manifest["cursor"] += 64
    if manifest.pop("digest", None) is not None:
        manifest["digest"] = sha256(canonical_json(manifest))
    storage.write(f"{newest}/MANIFEST.json", json.dumps(manifest).encode())
    part = f"{newest}/rank-0000.safetensors"
    body = bytearray(storage.read(part))
    header = json.loads(bytes(body[8 : 8 + int.from_bytes(body[:8], "little")]))
    place = header["head.weight/weight"]["data_offsets"][0] + 8 + int.from_bytes(body[:8], "little")
    body[place] ^= 1
    storage.write(part, bytes(body))
    found = verify(*there, "pretrain")
    assert not found.exact
    told = "\n".join(found.problems)
    assert "update 10 has loss" in told
    assert "cursor after update 12 is 768; it was 832" in told
    assert "the weights after update 12 are others" in told


def test_a_window_that_there_is_not_is_refused(there):
    for words, fields in (
        ("--from-update 5: expected a kept checkpoint's update: 0, 4, 8", {"start": 5}),
        ("stage 'ingest' does not train; those of .* that do: pretrain", {"stage": "ingest"}),
    ):
        with pytest.raises(UserError, match=words):
            verify(*there, **{"stage": "pretrain", **fields})


def test_a_damaged_checkpoint_to_begin_with_is_named(there):
    storage, _, _ = there
    prefix = read_head(storage, pretrained(there))[0].checkpoints[1].prefix
    storage.delete(f"{prefix}/rank-0000.safetensors")
    with pytest.raises(Damaged, match=r"rank-0000\.safetensors is missing"):
        verify(*there, "pretrain")
    assert storage.list_folders("scratch/") == []


def test_the_command_proves_it_with_an_exit_code(patchline, there):
    code, out, _ = patchline("verify", "pretrain")
    assert code == 0
    assert "✓ updates 9 to 12: 2 losses, cursor, weights: bit for bit" in out
    code, out, _ = patchline("verify", "pretrain", "--json", "--from-update", "4")
    assert (code, json.loads(out)["exact"], json.loads(out)["end"]) == (0, True, 8)


# get-output


def test_an_output_is_told_with_its_files_and_copied_whole(there, tmp_path):
    told = get_output(*there, "pretrain")
    assert (told.kind, told.attempt, told.elsewhere) == ("model", 1, 0)
    assert [file.path for file in told.files] == ["model.safetensors", "raw.safetensors"]
    assert copy_output(*there, "pretrain", str(tmp_path / "model")) == told
    for file in told.files:
        body = (tmp_path / "model" / file.path).read_bytes()
        assert (len(body), hashlib.sha256(body).hexdigest()) == (file.bytes, file.sha256)
    # Again, and to an address.
    assert copy_output(*there, "pretrain", f"file://{tmp_path}/model/") == told


def test_a_copied_data_set_is_one(there, tmp_path):
    seen: list[str] = []
    told = copy_output(*there, "ingest", str(tmp_path / "digits"), report=lambda file: seen.append(file.path))
    assert seen == [file.path for file in (*told.files, *told.shards)]
    copied = open_storage(f"file://{tmp_path}")
    output = read_output(copied, "digits")
    assert output.digest == told.digest
    shards = stored_shards(copied, output, "train")
    assert len(shards) > 1
    for shard in shards:
        for file in (shard.tar, shard.index):
            assert hashlib.sha256(copied.read(f"digits/{file.address}")).hexdigest() == file.sha256


def test_what_is_not_what_the_manifest_promises_is_not_copied(there, tmp_path):
    storage, _, _ = there
    key = get_output(*there, "pretrain").files[1].address.removeprefix(f"{storage.url}/")
    body = storage.read(key)
    storage.write(key, body[:-1] + bytes([body[-1] ^ 1]))
    with pytest.raises(Damaged, match=r"raw\.safetensors has sha256"):
        copy_output(*there, "pretrain", str(tmp_path / "model"))
    assert not (tmp_path / "model" / "raw.safetensors").exists()
    # Without its manifest nobody takes what is there for the output.
    assert not (tmp_path / "model" / "MANIFEST.json").exists()


def test_outputs_on_the_command_line(patchline, there, tmp_path):
    code, out, _ = patchline("get-output", "pretrain", str(tmp_path / "model"), "--json")
    found = json.loads(out)
    assert (code, found["kind"], found["copied_to"]) == (0, "model", str(tmp_path / "model"))
    code, out, _ = patchline("get-output", "ingest")
    assert code == 0
    assert f"sha256 of the manifest  {get_output(*there, 'ingest').digest}" in out
    code, _, error = patchline("get-output", "finetune")
    assert code == 2
    assert "stage 'finetune' is none of" in error
    there[0].delete(get_output(*there, "pretrain").address.removeprefix(f"{there[0].url}/") + "/MANIFEST.json")
    code, _, error = patchline("get-output", "pretrain")
    assert (code, "`patchline audit" in error) == (2, True)


def test_a_verification_on_a_cluster_is_a_job_that_runs_the_same_command(there, patchline, monkeypatch):
    """The job server runs the command at once, in this process, as one worker: a gang of one needs no Ray."""
    from cluster import jobs
    from pipeline.settings import Settings
    from pipeline.verification_job import verify_on_cluster

    logs: dict[str, str] = {}

    def submit(address: str, command: str, *, submission_id: str, **_: object) -> None:
        words = shlex.split(command)
        place = words.index("--workers")
        assert words[place + 1] == "1"
        _, out, error = patchline(*words[words.index("verify") : place], *words[place + 2 :])
        logs[submission_id] = f"a line of Ray's\n{error}{out}"

    monkeypatch.setattr(jobs, "submit", submit)
    monkeypatch.setattr(jobs, "status", lambda address, job: "SUCCEEDED")
    monkeypatch.setattr(jobs, "logs", lambda address, job: logs[job])
    storage, workflow_id, _ = there
    settings = Settings(root=storage.url, mlflow="http://mlflow:5000", jobs="http://127.0.0.1:8265")
    found = verify_on_cluster(settings, workflow_id, "pretrain", workers=1, start=4)
    assert (found.start, found.end, found.exact) == (4, 8, True)
    with pytest.raises(
        UserError, match=r"verified nothing; the end of its log:\n(.*\n)*error: stage 'ingest' does not"
    ):
        verify_on_cluster(settings, workflow_id, "ingest", workers=1)
