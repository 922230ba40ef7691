import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import UserError
from cluster.storage import open_storage
from stages.context import canonical_json
from stages.metrics import MetricReader, MetricWriter
from stages.models.config import ModelConfig
from stages.models.vit import VisionTransformer
from stages.training.config import TrainingConfig
from stages.training.devices import choose_device
from stages.training.loop import train
from stages.training.manifest import FORMAT, read_manifest, with_digest
from stages.training.objectives import cross_entropy, per_image_loss
from stages.training.optimizer import decayed
from stages.training.schedule import learning_rate
from stages.training.tensors import share
from tests.unit.stages.training.files import checkpoint_files


def config(**fields) -> TrainingConfig:
    return TrainingConfig.model_validate({"updates": 100, "lr": 2.0, **fields})


@pytest.mark.parametrize(
    ("fields", "update", "expected"),
    [
        ({}, 1, 2.0),
        ({}, 51, 1.0),
        ({}, 100, 1 + math.cos(math.pi * 0.99)),
        ({"decay": "linear", "end_lr": 0.5}, 51, 1.25),
        ({"decay": "constant"}, 77, 2.0),
        ({"warmup_updates": 10}, 1, 0.0),
        ({"warmup_updates": 10}, 6, 1.0),
        ({"warmup_updates": 10}, 11, 2.0),
        ({"warmup_updates": 10}, 56, 1.0),
        ({"lr_batch": 64}, 1, 2.0),
        ({"lr_batch": 64, "lr_scale": "linear"}, 51, 2.0),
        ({"lr_batch": 64, "lr_scale": "linear", "decay": "constant"}, 77, 4.0),
        ({"lr_batch": 512, "lr_scale": "sqrt"}, 1, 1.0),
    ],
)
def test_learning_rates(fields, update, expected):
    assert learning_rate(config(**fields), update, 100) == pytest.approx(expected, abs=1e-12)


def test_a_scaling_rule_needs_the_batch_that_the_rate_is_for():
    with pytest.raises(ValueError, match=r"lr_scale=linear needs lr_batch, the global batch that lr=2.0 is for"):
        config(lr_scale="linear")


def test_epochs_count_the_training_images():
    assert TrainingConfig(epochs=3, global_batch=100).total_updates(1000) == 30
    assert TrainingConfig(epochs=0.01, global_batch=100).total_updates(1000) == 1
    with pytest.raises(UserError, match="warmup_updates=40 is not below the run's 30 updates"):
        TrainingConfig(epochs=3, global_batch=100, warmup_updates=40).total_updates(1000)


def test_kernels_alone_are_decayed():
    model = VisionTransformer(ModelConfig(width=8, depth=1, mlp_dim=16, num_heads=2, patch_size=4), 8, 3)
    names = {name for name, parameter in model.named_parameters() if decayed(name, parameter)}
    assert names == {
        "patch_embed.proj.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight",
        "head.weight",
    }


@pytest.mark.parametrize("position", ["learned", "learned_2d", "relative", "none"])
@pytest.mark.parametrize("position_at", ["stem", "each_layer"])
def test_of_other_networks_too_kernels_alone_are_decayed(position, position_at):
    at = position_at if position.startswith("learned") else "stem"
    fields = {"position": position, "position_at": at, "pool": "attention", "head": "mlp_gelu"}
    shape = ModelConfig(width=8, depth=1, mlp_dim=16, num_heads=2, patch_size=4, **fields)
    model = VisionTransformer(shape, 8, 3)
    names = {name for name, parameter in model.named_parameters() if decayed(name, parameter)}
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    pool = {f"attn_pool.{layer}.weight" for layer in ("q", "kv", "proj", "mlp.fc1", "mlp.fc2")}
    others = {"patch_embed.proj.weight", "pre_logits.fc.weight", "head.weight"}
    assert names == {f"blocks.0.{layer}.weight" for layer in layers} | pool | others


def test_the_sigmoid_loss_is_summed_over_classes_and_averaged_over_images():
    logits = torch.full((4, 21843), -10.0)
    labels = torch.tensor([0, 1, 2, 3])
    # 21,843 classes at bias -10: the paper's loss at the start.
    assert float(cross_entropy(logits, labels, loss="sigmoid")) == pytest.approx(10.99, abs=0.01)
    assert per_image_loss(logits, labels, loss="sigmoid").shape == (4,)


def test_the_softmax_loss_is_the_mean_of_the_images_losses():
    logits, labels = torch.randn(16, 5, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 5
    mean = float(per_image_loss(logits, labels, loss="softmax").mean())
    assert float(cross_entropy(logits, labels, loss="softmax")) == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("mixed", [False, True])
def test_label_smoothing_gives_a_part_of_each_target_to_all_classes(smoothing, mixed):
    random = np.random.default_rng(5)
    logits, positions = random.normal(size=(6, 5)), np.arange(6) % 5
    targets = random.dirichlet(np.ones(5), size=6) if mixed else np.eye(5)[positions]
    smooth = (1 - smoothing) * targets + smoothing / 5
    log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -(smooth * log_softmax).sum(axis=1).mean()
    given = torch.from_numpy(targets).float() if mixed else torch.from_numpy(positions)
    found = cross_entropy(torch.from_numpy(logits), given, loss="softmax", label_smoothing=smoothing)
    assert float(found) == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=200), st.integers(1, 32))
def test_shares_are_whole_and_balanced(sizes, ranks):
    owners = share(sizes, ranks)
    loads = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(ranks)]
    assert sum(loads) == sum(sizes)
    # Largest first is never worse than the ideal by more than the largest tensor.
    assert max(loads) <= sum(sizes) / ranks + max(sizes)


def test_a_damaged_checkpoint_is_refused(make_stage):
    stage = make_stage("damaged")
    train(stage.job(updates=3), stage.rank())
    manifest = read_manifest(stage.storage, stage.checkpoint)
    assert (manifest["update"], manifest["cursor"]) == (3, 3 * 32)
    key = f"{stage.checkpoint}/{manifest['parts'][0]['path']}"
    body = bytearray(stage.storage.read(key))
    body[-1] ^= 1
    stage.storage.write(key, bytes(body))
    outcome = train(stage.job(updates=3), stage.rank())
    assert (outcome["outcome"], outcome["prefix"]) == ("damaged", stage.checkpoint)
    assert "rank-0000.safetensors has sha256" in outcome["reason"]


def test_a_checkpoint_holds_every_weight_and_optimizer_tensor_in_fp32(make_stage):
    stage = make_stage("whole")
    train(stage.job(updates=3), stage.rank())
    with checkpoint_files(stage.storage, stage.checkpoint) as files:
        tensors = list(files.tensors())
    model = VisionTransformer(stage.job().model, 16, 7)
    expected = {(name, key) for name, _ in model.named_parameters() for key in ("weight", "exp_avg", "exp_avg_sq")}
    assert {(name, key) for name, key, _ in tensors} == expected
    assert all(tensor.dtype == torch.float32 for *_, tensor in tensors)


def test_a_run_goes_on_from_a_checkpoint_that_tells_less_of_itself(make_stage):
    """Earlier versions did not tell how many images a model is trained on."""
    whole, stage = make_stage("tells"), make_stage("tells-less")
    train(whole.job(), whole.rank())
    assert train(stage.job(), stage.rank(stop=lambda: True))["outcome"] == "stopped"
    key = f"{stage.checkpoint}/MANIFEST.json"
    manifest = {name: value for name, value in json.loads(stage.storage.read(key)).items() if name != "digest"}
    assert manifest["about"].pop("train_images") == stage.dataset.meta["splits"]["train"]["count"]
    stage.storage.write(key, canonical_json(with_digest(manifest)))
    assert train(stage.job(), stage.rank())["outcome"] == "done"
    assert stage.weights(2) == whole.weights(1)


def test_a_newer_checkpoint_format_is_refused(make_stage):
    stage = make_stage("newer")
    train(stage.job(updates=3), stage.rank())
    key = f"{stage.checkpoint}/MANIFEST.json"
    manifest = {name: value for name, value in json.loads(stage.storage.read(key)).items() if name != "digest"}
    stage.storage.write(key, canonical_json(with_digest({**manifest, "format": FORMAT + 1})))
    with pytest.raises(UserError, match="install a newer patchline"):
        read_manifest(stage.storage, stage.checkpoint)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (b'"cursor":96', b'"cursor":97', "not what was written"),
        (b'"cursor"', b'"cvrsor"', "not what was written"),
        (b'"format":3', b'"format":9', "not what was written"),
        (b'"digest"', b'"digesu"', "has lost its digest"),
        (b'{"', b'["', "no JSON"),
    ],
)
def test_a_manifest_that_was_changed_is_refused_by_name(make_stage, old, new, expected):
    stage = make_stage("changed")
    train(stage.job(updates=3), stage.rank())
    key = f"{stage.checkpoint}/MANIFEST.json"
    body = stage.storage.read(key)
    assert old in body
    stage.storage.write(key, body.replace(old, new, 1))
    outcome = train(stage.job(updates=3), stage.rank())
    assert (outcome["outcome"], outcome["prefix"]) == ("damaged", stage.checkpoint)
    assert outcome["reason"].startswith(key)
    assert expected in outcome["reason"]


def test_metric_points_are_read_once_in_order_as_they_appear(tmp_path):
    storage = open_storage(f"file://{tmp_path}")
    writer, reader = MetricWriter(storage, "a", interval=3600), MetricReader(storage, "a")
    writer.log({"loss": 2.0, "lr": 0.1}, 1)
    writer.flush()
    assert [(p.name, p.value, p.step) for p in reader.new_points()] == [("loss", 2.0, 1), ("lr", 0.1, 1)]
    writer.log({"loss": 1.0}, 2)
    assert list(reader.new_points()) == []
    writer.close()
    assert [(p.name, p.value, p.step) for p in reader.new_points()] == [("loss", 1.0, 2)]
    assert list(reader.new_points()) == []


def test_the_placement_chooses_the_device_whatever_the_machine_has(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device(TrainingConfig(updates=1), 0) == torch.device("cpu")
    assert choose_device(TrainingConfig(updates=1, gpus_per_worker=1), 1) == torch.device("cuda", 1)
    with pytest.raises(UserError, match="worker 2 of this machine finds 2 GPUs; set it to 0"):
        choose_device(TrainingConfig(updates=1, gpus_per_worker=1), 2)


def test_a_warm_up_can_be_a_part_of_the_run():
    config = TrainingConfig(epochs=3, global_batch=100, warmup_fraction=0.1, lr=2.0)
    assert config.warmup(config.total_updates(1000)) == 3
    assert learning_rate(config, 4, 30) == 2.0
    assert config.warmup(1) == 0
