"""Imported hybrids and BiT are fine-tuned and go out again; so does a network that has predicted masked patches."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from cluster.errors import UserError
from cluster.storage import Storage, open_storage
from pipeline import cli
from pipeline.commands.base import console
from pipeline.config import Workflow, parse_workflow
from pipeline.exporting import export_model
from pipeline.importing import import_model, told
from pipeline.outputs import read_recorded
from pipeline.settings import resolve
from stages.models.formats.files import read_network
from stages.models.formats.network import Network
from stages.models.formats.timm_resnets import as_computed
from stages.models.store import read_state
from tests.unit.pipeline.finished import run_to_its_end
from tests.unit.stages.models.formats.networks import random_network, written
from tests.unit.stages.models.peers import import_timm

Finished = tuple[Storage, str, Workflow, dict[str, Network]]
TRAINING = {
    "updates": 3, "global_batch": 16, "lr": 0.01, "workers": 0, "log_every": 1,
    "input": {"streams": 2, "window": 64, "crop_area": [0.5, 1.0], "flip": False, "loader_threads": 0},
}  # fmt: skip
SMALL = {"width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 64}
MASKED = ["mask_token", "prediction.bias", "prediction.weight"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Finished:
    folder = tmp_path_factory.mktemp("resnets")
    bit = random_network(blocks=(1, 1, 1, 1), resolution=32, num_classes=5)
    hybrid = random_network(**SMALL, stem={}, patch_size=2, resolution=16, num_classes=5)
    archive = written(bit, "npz", folder)
    archive.with_suffix(".json").unlink()
    stages = {
        "ingest": {"source": {"kind": "digits"}, "samples_per_shard": 400},
        "bit": {"kind": "import", "path": str(archive)},
        "hybrid": {"kind": "import", "path": str(written(hybrid, "timm", folder / "hybrid"))},
        "tuned-bit": {"kind": "finetune", "data": "ingest", "from": "bit", "resolution": 40, **TRAINING},
        "tuned-hybrid": {"kind": "finetune", "data": "ingest", "from": "hybrid", "resolution": 24, **TRAINING},
        "masked": {
            "kind": "pretrain", "data": "ingest", "model": {**SMALL, "patch_size": 4}, "resolution": 16,
            "objective": "masked", **TRAINING,
        },
    }  # fmt: skip
    flow = parse_workflow(yaml.safe_dump({"name": "resnets", "seed": 3, "stages": stages}), "resnets.yaml")
    _, workflow_id = run_to_its_end(folder / "root", flow)
    return open_storage(f"file://{folder}/root"), workflow_id, flow, {"bit": bit, "hybrid": hybrid}


@pytest.mark.parametrize(("name", "resolution"), [("bit", 40), ("hybrid", 24)])
def test_an_imported_resnet_is_fine_tuned_at_another_resolution(finished, name, resolution):
    storage, workflow_id, flow, networks = finished
    network, model = networks[name], read_recorded(storage, workflow_id, flow, name)
    before = read_state(storage, model)
    assert all(torch.equal(before[key], value) for key, value in network.state.items())
    tuned = read_recorded(storage, workflow_id, flow, f"tuned-{name}")
    assert (tuned.meta["resolution"], tuned.meta["num_classes"], tuned.meta["update"]) == (resolution, 10, 3)
    after = read_state(storage, tuned)
    assert after.keys() == before.keys()
    assert after["head.weight"].any()
    moved = float((after["norm.weight"] - network.state["norm.weight"]).abs().max())
    assert 0 < moved < 0.1


def test_what_was_found_is_told(finished):
    storage, workflow_id, flow, _ = finished
    bit = dict(told(read_recorded(storage, workflow_id, flow, "bit").meta["imported"]))
    assert (bit["network"], bit["kernel epsilon"], bit["resolution"]) == (
        "R[1, 1, 1, 1]x1",
        "1e-10 of the variance",
        "224",
    )
    assert "resolution=224" in bit["notes"]
    hybrid = dict(told(read_recorded(storage, workflow_id, flow, "hybrid").meta["imported"]))
    assert (hybrid["kernel epsilon"], hybrid["group norm epsilon"]) == ("1e-05 of the deviation", "1e-06")
    assert hybrid["network"] == "R+ViT-32x1/8"


@pytest.mark.parametrize(
    ("name", "format", "to"),
    [
        *(("bit", "npz", "a.npz"), ("bit", "hf", "a")),
        *(("hybrid", "npz", "a.npz"), ("hybrid", "timm", "a"), ("hybrid", "hf", "a")),
    ],
)
def test_a_tuned_resnet_goes_out_and_is_what_it_was(finished, tmp_path, name, format, to):
    import_timm()
    storage, workflow_id, flow, _ = finished
    about = export_model(storage, workflow_id, flow, str(tmp_path / to), format=format, stage=f"tuned-{name}")
    found = read_network(tmp_path / to).network
    tuned = read_recorded(storage, workflow_id, flow, f"tuned-{name}")
    expected = read_state(storage, tuned)
    assert found.state.keys() == expected.keys()
    assert all(torch.equal(found.state[key], value) for key, value in expected.items())
    assert found.config.model_dump(mode="json") == tuned.meta["model"]
    parity = about["parity"]
    assert parity["greatest_difference"] <= 1e-4 * max(1.0, parity["greatest_logit"])
    if (name, format) == ("bit", "npz"):
        assert parity["compared_with"] == "our own reader"
    else:
        assert parity["compared_with"].startswith("our own reader and t")
        assert parity["epsilons"] == "1e-08 added to the variance of kernels and 1e-05 in GroupNorm"
        assert parity["epsilon_difference"] > 0


def test_an_imported_archive_goes_out_byte_for_byte_and_where_there_is_no_such_network_not(finished, tmp_path):
    storage, workflow_id, flow, _ = finished
    export_model(storage, workflow_id, flow, str(tmp_path / "again.npz"), stage="bit")
    assert (tmp_path / "again.npz").read_bytes() == Path(flow.stages["bit"].path).read_bytes()
    with pytest.raises(UserError, match=r"timm has no R\[1, 1, 1, 1\]x1: it has R50x1"):
        export_model(storage, workflow_id, flow, str(tmp_path / "timm"), format="timm", stage="tuned-bit", drop=True)
    assert not (tmp_path / "timm").exists()


def test_what_predicts_masked_patches_is_carried_or_refused_by_name(finished, tmp_path):
    storage, workflow_id, flow, _ = finished
    import_timm()
    expected = read_state(storage, read_recorded(storage, workflow_id, flow, "masked"))
    assert set(MASKED) < expected.keys()
    assert "head.weight" not in expected
    export_model(storage, workflow_id, flow, str(tmp_path / "a.safetensors"), stage="masked")
    carried = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert carried.keys() == expected.keys()
    body = {key: value for key, value in expected.items() if key not in MASKED}
    for format, to in (("npz", "a.npz"), ("timm", "timm"), ("hf", "hf")):
        path = tmp_path / to
        message = rf"{format} has no place for {re.escape(', '.join(MASKED))}: --drop leaves it out"
        with pytest.raises(UserError, match=message):
            export_model(storage, workflow_id, flow, str(path), format=format, stage="masked")
        assert not path.exists()
        about = export_model(storage, workflow_id, flow, str(path), format=format, stage="masked", drop=True)
        assert sorted(about["dropped"]) == MASKED
        assert about["parity"]["compared_with"].startswith("our own reader and t"), about["parity"]
        assert about["parity"]["greatest_difference"] <= 1e-5 * max(1.0, about["parity"]["greatest_logit"])
        found = read_network(path).network
        assert (found.num_classes, found.classes, found.about["objective"]["kind"]) == (0, None, "masked")
        assert found.state.keys() == body.keys()
        assert all(torch.equal(found.state[key], value) for key, value in body.items())


def test_a_network_that_has_predicted_masked_patches_is_imported_without_what_did(finished, tmp_path):
    storage, workflow_id, flow, _ = finished
    export_model(storage, workflow_id, flow, str(tmp_path / "a.safetensors"), stage="masked")
    settings = resolve(root=f"file://{tmp_path}/root", mlflow=f"sqlite:///{tmp_path}/mlflow.db")
    output = import_model(str(tmp_path / "a.safetensors"), settings)
    assert (output.meta["num_classes"], output.meta["classes"]) == (0, [])
    assert output.meta["imported"]["left_out"] == ", ".join(MASKED)
    assert not set(MASKED) & read_state(settings.storage(), output).keys()


def test_the_command_says_how_far_the_librarys_epsilons_move_logits(finished, tmp_path, monkeypatch, capsys):
    import_timm()
    storage, workflow_id, _, _ = finished
    monkeypatch.setattr(console, "width", 200)
    words = ("export", str(tmp_path / "vit"), "--format", "timm", "--stage", "tuned-hybrid", "--workflow", workflow_id)
    monkeypatch.setattr(sys, "argv", ["patchline", *words, "--root", storage.url])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out = capsys.readouterr().out
    assert not end.value.code
    assert "logits of our own reader and timm" in out
    assert "the library has 1e-08 added to the variance of kernels and 1e-05 in GroupNorm, for which the format" in out


def test_an_imported_resnet_has_the_librarys_epsilons_where_nothing_else_is_said(tmp_path):
    network = random_network(**SMALL, stem={}, patch_size=2, resolution=16, activation="gelu")
    settings = resolve(root=f"file://{tmp_path}/root", mlflow=f"sqlite:///{tmp_path}/mlflow.db")
    path = written(network, "hf", tmp_path / "hf")
    (path / "config.json").unlink()
    output = import_model(str(path), settings, ["import.num_heads=2", "import.layer_norm_epsilon=1e-6"])
    assert output.meta["model"] == as_computed(network.config).model_dump(mode="json")
    assert "stem.epsilon=1e-08" in output.meta["imported"]["notes"]
