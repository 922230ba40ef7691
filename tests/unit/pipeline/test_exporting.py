"""A foreign model through a whole workflow, and out again: import, fine-tuning, few-shot evaluation, export."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from cluster.errors import UserError
from cluster.storage import Storage, open_storage
from pipeline import cli
from pipeline.commands.base import console
from pipeline.config import Workflow, parse_workflow
from pipeline.exporting import export_model
from pipeline.importing import import_model, import_workflow
from pipeline.outputs import read_recorded
from pipeline.plan import plan
from pipeline.settings import resolve
from stages.models.formats.files import read_network
from stages.models.formats.network import Network
from stages.models.store import read_state
from tests.unit.pipeline.finished import run_to_its_end
from tests.unit.stages.models.formats.networks import assert_same, random_network, written
from tests.unit.stages.models.peers import import_timm

Finished = tuple[Storage, str, Workflow, Network]
TRAINING = {
    "resolution": 24, "updates": 3, "global_batch": 32, "lr": 0.01, "resampling": "bicubic", "workers": 0,
    "log_every": 1,
    "input": {"streams": 2, "window": 64, "crop_area": [0.5, 1.0], "flip": False, "loader_threads": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Finished:
    """A workflow that begins with an archive as those of ImageNet-21k are: a hidden layer, and a last one of zeros."""
    folder = tmp_path_factory.mktemp("imported")
    network = random_network(width=32, num_heads=2, mlp_dim=64, resolution=16, num_classes=50, head="mlp_tanh")
    network.state["head.weight"].zero_()
    network.state["head.bias"].zero_()
    path = written(network, "npz", folder)
    path.with_suffix(".json").unlink()
    digits = random_network(width=32, num_heads=2, mlp_dim=64, resolution=16, num_classes=10)
    continued = {**TRAINING, "resolution": 16, "lr": 1e-30, "updates": 1, "model": {**digits.config.model_dump()}}
    del continued["resampling"]
    stages = {
        "ingest": {"source": {"kind": "digits"}, "samples_per_shard": 400},
        "import": {"path": str(path)},
        "finetune": {"data": "ingest", "from": "import", **TRAINING},
        "digits": {"kind": "import", "path": str(written(digits, "hf", folder / "digits"))},
        "continued": {"kind": "pretrain", "data": "ingest", "init_from": "digits", **continued},
        "fewshot": {"data": "ingest", "from": "import", "shots": [1, 5], "draws": 3, "baselines": ["untrained"]},
        # In whole batches, which round as those of a single task.
        "features": {"data": "ingest", "from": "import", "baselines": ["untrained"], "images_per_task": 768},
        "shared": {"kind": "fewshot", "features": "features", "shots": [1, 5], "draws": 3},
    }
    flow = parse_workflow(yaml.safe_dump({"name": "imported", "seed": 3, "stages": stages}), "imported.yaml")
    _, workflow_id = run_to_its_end(folder / "root", flow)
    return open_storage(f"file://{folder}/root"), workflow_id, flow, network


def test_an_imported_model_is_fine_tuned_and_evaluated(finished):
    storage, workflow_id, flow, network = finished
    model = read_recorded(storage, workflow_id, flow, "import")
    state = read_state(storage, model)
    assert all(torch.equal(state[name], value) for name, value in network.state.items())
    told = model.meta["imported"]
    assert (told["format"], told["arrays"], told["classes"], told["resolution"]) == ("npz", 42, 50, 16)
    assert "last layer is all zeros" in told["notes"]
    tuned = read_recorded(storage, workflow_id, flow, "finetune")
    assert (tuned.meta["resolution"], tuned.meta["num_classes"], tuned.meta["update"]) == (24, 10, 3)
    after = read_state(storage, tuned)
    assert after["head.weight"].any()
    assert float((after["norm.weight"] - network.state["norm.weight"]).abs().max()) < 0.1
    rows = read_recorded(storage, workflow_id, flow, "fewshot").meta["fewshot"]
    assert [(row["features"], row["shots"]) for row in rows] == [
        ("features", 1), ("features", 5), ("untrained", 1), ("untrained", 5),
    ]  # fmt: skip


def test_a_stage_of_features_stands_for_the_data_and_the_model(finished):
    storage, workflow_id, flow, _ = finished
    one, other = (read_recorded(storage, workflow_id, flow, name).meta["fewshot"] for name in ("fewshot", "shared"))
    assert one == other
    assert len(read_recorded(storage, workflow_id, flow, "features").meta["parts"]) > 1
    assert {stage.name: stage.action for stage in plan(storage, flow)}["features"] == "reuse"


def test_pretraining_goes_on_from_an_imported_model_head_and_all(finished):
    storage, workflow_id, flow, _ = finished
    before = read_state(storage, read_recorded(storage, workflow_id, flow, "digits"))
    after = read_state(storage, read_recorded(storage, workflow_id, flow, "continued"))
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_file_is_what_the_import_is_known_by(finished, tmp_path):
    storage, _, flow, _ = finished
    assert {stage.name: stage.action for stage in plan(storage, flow)}["import"] == "reuse"
    path = Path(flow.stages["import"].path)
    moved = flow.model_copy(
        update={
            "stages": {**flow.stages, "import": flow.stages["import"].model_copy(update={"path": f"file://{path}"})}
        }
    )
    assert {stage.name: stage.action for stage in plan(storage, moved)}["import"] == "reuse"
    written(random_network(), "npz", tmp_path)
    before = import_workflow(str(tmp_path / "vit.npz")).stages["import"].external_digest()
    (tmp_path / "vit.json").unlink()
    assert import_workflow(str(tmp_path / "vit.npz")).stages["import"].external_digest() != before
    with pytest.raises(UserError, match=r"there is no gone\.npz"):
        import_workflow(str(tmp_path / "gone.npz")).stages["import"].external_digest()


@pytest.mark.parametrize(("format", "to"), [("npz", "vit.npz"), ("timm", "vit"), ("hf", "vit"), ("safetensors", None)])
def test_a_trained_model_goes_out_in_every_format(finished, tmp_path, format, to):
    import_timm()
    storage, workflow_id, flow, _ = finished
    path = tmp_path / "new" / (to or "vit.safetensors")
    path.parent.mkdir()
    about = export_model(storage, workflow_id, flow, str(path), format=format, stage="finetune")
    found = read_network(path).network
    tuned = read_recorded(storage, workflow_id, flow, "finetune")
    expected = read_state(storage, tuned)
    assert found.state.keys() == expected.keys()
    assert all(torch.equal(found.state[name], value) for name, value in expected.items())
    assert (found.resolution, found.classes) == (24, tuple(tuned.meta["classes"]))
    if format == "safetensors":
        # Copied byte by byte, in the memory of a piece.
        assert "parity" not in about
        return
    assert found.about["resampling"] == "bicubic"
    assert about["parity"]["greatest_difference"] <= 1e-5 * max(1.0, about["parity"]["greatest_logit"])
    assert about["parity"]["compared_with"].startswith("our own reader and t")


def test_an_imported_model_goes_out_again_byte_for_byte(finished, tmp_path):
    storage, workflow_id, flow, _ = finished
    export_model(storage, workflow_id, flow, f"file://{tmp_path}/again.npz", stage="import")
    assert (tmp_path / "again.npz").read_bytes() == Path(flow.stages["import"].path).read_bytes()
    with pytest.raises(UserError, match=r"hf has no place for pre_logits\.fc\.bias, pre_logits\.fc\.weight: --drop"):
        export_model(storage, workflow_id, flow, str(tmp_path / "hf"), format="hf", stage="import")
    assert not (tmp_path / "hf").exists()
    import_timm()
    about = export_model(storage, workflow_id, flow, str(tmp_path / "hf"), format="hf", stage="import", drop=True)
    assert set(about["dropped"]) == {"pre_logits.fc.weight", "pre_logits.fc.bias"}
    assert about["parity"]["greatest_logit"] > 0.5  # Not behind the last layer of zeros.
    assert read_network(tmp_path / "hf").network.config.head == "linear"
    for to, format, message in (
        ("vit", None, "TO vit does not say the format: say it with --format: expected one of npz, timm, hf, safetens"),
        ("vit", "onnx", "--format onnx: expected one of npz"),
        ("vit.bin", "npz", r"TO vit.bin: expected a name that ends in \.npz"),
        ("vit.npz", "hf", "TO vit.npz: hf is a folder of several files"),
    ):
        with pytest.raises(UserError, match=message):
            export_model(storage, workflow_id, flow, to, format=format, stage="import")


def test_a_folder_is_imported_from_any_storage_and_from_python(tmp_path):
    network = random_network(num_classes=3)
    settings = resolve(root=f"file://{tmp_path}/root", mlflow=f"sqlite:///{tmp_path}/mlflow.db")
    for format in ("hf", "timm"):
        written(network, format, tmp_path / format)
        output = import_model(f"file://{tmp_path}/{format}", settings, ['import.class_names=["a", "b", "c"]'])
        assert output.meta["classes"] == ["a", "b", "c"]
        state = read_state(settings.storage(), output)
        found = Network(config=network.config, resolution=12, num_classes=3, state=state)
        assert_same(found, network)


def test_the_commands_say_what_was_found_and_how_far_logits_are_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATCHLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(console, "width", 200)

    def patchline(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["patchline", *words, "--root", f"file://{tmp_path}/root"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out = capsys.readouterr()
        return int(end.value.code or 0), out.out, out.err

    path = written(random_network(activation="gelu"), "npz", tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    code, out, _ = patchline("import", str(path))
    assert code == 0
    assert [line.split()[1] for line in out.splitlines() if line.startswith(("format", "arrays", "activation"))] == [
        "npz", "40", "gelu",
    ]  # fmt: skip
    code, out, _ = patchline("export", str(tmp_path / "out.npz"), "--stage", "import")
    assert code == 0
    assert "differ by" in out
    code, out, _ = patchline("export", str(tmp_path / "out"), "--format", "hf", "--json")
    assert json.loads(out)["exported_as"] == "hf"
    (tmp_path / "bad.npz").write_bytes(path.read_bytes()[:5000])
    code, out, error = patchline("import", str(tmp_path / "bad.npz"))
    assert code == 1
    assert "bad.npz: it is no whole archive of arrays" in out + error
