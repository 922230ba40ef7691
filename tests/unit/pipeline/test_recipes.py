"""The recipes that ship against the tables that they name, through the real optimizer and schedule."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from pipeline.config import load_workflow, shipped
from pipeline.plan import plan
from stages.choice.config import ChoiceConfig
from stages.config import StageConfig
from stages.finetune.config import FinetuneConfig
from stages.ingest.config import IngestConfig
from stages.models.build import build
from stages.models.config import ModelConfig, as_vit, model_config
from stages.models.initialize import initialize
from stages.models.masked import MaskedVisionTransformer
from stages.models.masked_config import MaskedConfig
from stages.models.resnet_config import BitConfig
from stages.pretrain.config import PretrainConfig
from stages.training.objectives import cross_entropy
from stages.training.optimizer import make_optimizer
from stages.training.schedule import learning_rate
from tests.unit.stages.models.outputs import file_storage, random_images

JFT, I21K, I1K = 303e6, 14_197_122, 1_281_167


@dataclass(frozen=True)
class Row:
    """What the source says: model, training images, classes, epochs, batch, rate, decay and last rate, weight decay,
    dropout, clipping, loss."""

    model: str
    images: float
    classes: int
    epochs: int
    lr: float
    decay: str
    weight_decay: float
    dropout: float = 0.0
    clip: float = 1.0
    loss: str = "sigmoid"
    batch: int = 4096
    pool: str = "token"
    head: str = "mlp_tanh"
    position: str = "learned"
    randaugment: tuple[int, float] | None = None
    mixup: float = 0.0
    head_bias: float | None = None
    """If absent, -10 for the sigmoid loss and 0 for softmax."""
    resize: str = "resize"
    """How an image is evaluated: to its size, or its short side to 256 first."""

    @property
    def bias(self) -> float:
        return self.head_bias if self.head_bias is not None else -10.0 if self.loss == "sigmoid" else 0.0

    @property
    def updates(self) -> int:
        return round(self.epochs * self.images / self.batch)


def jft(model: str, epochs: int, lr: float) -> Row:
    return Row(model, JFT, 18_291, epochs, lr, "linear", 0.1, clip=0.0)


def imagenet21k(model: str, epochs: int) -> Row:
    return Row(model, I21K, 21_843, epochs, 1e-3, "linear", 0.03, dropout=0.1)


def imagenet1k(model: str) -> Row:
    return Row(model, I1K * 0.99, 1_000, 300, 3e-3, "cosine", 0.3, dropout=0.1, loss="softmax")


def augreg(model: str, images: float, randaugment: tuple[int, float] | None, mixup: float) -> Row:
    small = images < 2e6
    classes, pool, head, bias = (1_000, "token", "mlp_tanh", -6.9) if small else (21_843, "average", "linear", -10)
    return Row(
        model, images, classes, 300, 1e-3, "cosine", 0.1, pool=pool, head=head, randaugment=randaugment, mixup=mixup,
        head_bias=bias, resize="resize_small_then_crop",
    )  # fmt: skip


ROWS = {
    # Table 3 of the paper; with it the clipping of section 3 of its appendix.
    "jft/b16": jft("B/16", 7, 8e-4),
    "jft/b32": jft("B/32", 7, 8e-4),
    "jft/l32": jft("L/32", 7, 6e-4),
    "jft/l16": jft("L/16", 7, 4e-4),
    "jft/l16-14ep": jft("L/16", 14, 4e-4),
    "jft/h14": jft("H/14", 14, 3e-4),
    "jft/r50x1": jft("R50x1", 7, 1e-3),
    "jft/r50x2": jft("R50x2", 7, 1e-3),
    "jft/r101x1": jft("R101x1", 7, 8e-4),
    "jft/r152x1": jft("R152x1", 7, 6e-4),
    "jft/r152x2": jft("R152x2", 7, 6e-4),
    "jft/r50-b16": jft("R50+B/16", 7, 8e-4),
    "jft/r50-b32": jft("R50+B/32", 7, 8e-4),
    "jft/r50-l32": jft("R50+L/32", 7, 2e-4),
    "jft/r50-l16": jft("R50+L/16", 7, 4e-4),
    "jft/r50-l16-14ep": jft("R50+L/16", 14, 4e-4),
    "imagenet21k/b16": imagenet21k("B/16", 90),
    "imagenet21k/b32": imagenet21k("B/32", 90),
    "imagenet21k/l16": imagenet21k("L/16", 90),
    "imagenet21k/l16-30ep": imagenet21k("L/16", 30),
    "imagenet21k/l32": imagenet21k("L/32", 90),
    "imagenet21k/l32-30ep": imagenet21k("L/32", 30),
    "imagenet1k/b16": imagenet1k("B/16"),
    "imagenet1k/b32": imagenet1k("B/32"),
    "imagenet1k/l16": imagenet1k("L/16"),
    "imagenet1k/l32": imagenet1k("L/32"),
    # big_vision's configs/vit_i21k.py and vit_i1k.py, where 51,200 images and 1 % are kept for validation.
    "augreg/imagenet21k-ti16": augreg("Ti/16", I21K - 51_200, None, 0.0),
    "augreg/imagenet21k-s16": augreg("S/16", I21K - 51_200, (2, 0), 0.0),
    "augreg/imagenet21k-b16": augreg("B/16", I21K - 51_200, (2, 10), 0.2),
    "augreg/imagenet1k-ti16": augreg("Ti/16", I1K * 0.99, (2, 0), 0.0),
    "augreg/imagenet1k-s16": augreg("S/16", I1K * 0.99, (2, 15), 0.5),
    "augreg/imagenet1k-b16": augreg("B/16", I1K * 0.99, (2, 15), 0.5),
    # arXiv:2205.01580 and configs/vit_s16_i1k.py.
    "plain/s16": Row(
        "S/16", I1K * 0.99, 1_000, 90, 1e-3, "cosine", 0.1, loss="softmax", batch=1024, pool="average",
        position="sincos_2d", randaugment=(2, 10), mixup=0.2, resize="resize_small_then_crop",
    ),
}  # fmt: skip
TABLE_4 = {
    # Updates, rates to choose from, part of the training images that the choice is made on; then the warm-up of the
    # paper's code, the other training images, classes.
    "finetune/imagenet": (20_000, (0.003, 0.01, 0.03, 0.06), 0.01, 500, 1_268_355, 1000),
    "finetune/cifar10": (10_000, (0.001, 0.003, 0.01, 0.03), 0.02, 500, 49_000, 10),
    "finetune/cifar100": (10_000, (0.001, 0.003, 0.01, 0.03), 0.02, 500, 49_000, 100),
    "finetune/pets": (500, (0.001, 0.003, 0.01, 0.03), 0.1, 100, 3_312, 37),
    "finetune/flowers": (500, (0.001, 0.003, 0.01, 0.03), 0.1, 100, 918, 102),
    "finetune/vtab": (2_500, (0.01,), 0.2, 500, 800, 102),
}
BIT = {
    # Section 3.2 of arXiv:1912.11370: training images, classes, loss, first bias of the head.
    "bit/imagenet21k-r50x1": (I21K, 21_843, "sigmoid", -10.0),
    "bit/imagenet1k-r50x1": (I1K * 0.99, 1_000, "softmax", 0.0),
}
WARMUP = 10_000
KERNELS = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
OWN = {"digits", "families", "fashion", "finetune/fashion", "folder", "masked/fashion", "positions", "scaling"}
"""Recipes that follow no table."""


def pretraining(name: str) -> PretrainConfig:
    config = load_workflow(name).stages["pretrain"]
    assert isinstance(config, PretrainConfig)
    return config


def thin(model: ModelConfig | BitConfig) -> ModelConfig | BitConfig:
    """The same network, small enough to be built: all its parts have their names."""
    if isinstance(model, BitConfig):
        return model.model_copy(update={"blocks": (1, 1, 1, 1), "width_factor": 1})
    return model.model_copy(update={"width": 32, "depth": 2, "mlp_dim": 32, "num_heads": 2})


def decayed_names(model: nn.Module, config: PretrainConfig) -> set[str]:
    """The parameters that the optimizer decays."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = make_optimizer(model, config).param_groups
    return {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}


def test_every_recipe_is_held_against_its_source():
    assert set(shipped()) - OWN == {*ROWS, *TABLE_4, *BIT, "masked/b16"}


@pytest.mark.parametrize("name", ROWS)
def test_the_table_s_figures(name):
    row, config = ROWS[name], pretraining(name)
    shape = model_config(row.model)
    # A ResNet has a linear head, and none of the rest.
    own = {"head": row.head, "pool": row.pool, "dropout": row.dropout, "position": row.position}
    given = {} if isinstance(shape, BitConfig) else own
    assert config.model == shape.model_copy(update={**given, "head_bias": row.bias})
    assert (config.resolution, config.global_batch, config.lr_batch) == (224, row.batch, row.batch)
    assert (config.optimizer, config.betas, config.loss) == ("adamw", (0.9, 0.999), row.loss)
    assert (config.weight_decay, config.clip, config.label_smoothing) == (row.weight_decay, row.clip, 0.0)
    assert (config.polyak_decay, config.lr_scale) == (0.0, "none")
    augment = config.input.randaugment
    assert (row.randaugment, row.mixup) == (
        (augment.layers, augment.magnitude) if augment else None,
        config.input.mixup,
    )
    assert config.input.evaluation.method == row.resize
    assert (config.input.crop_area, config.input.crop_ratio, config.input.flip) == ((0.05, 1.0), (0.75, 1.3333), True)


@pytest.mark.parametrize("name", ROWS)
def test_updates_and_rates(name, tmp_path):
    row, config = ROWS[name], pretraining(name)
    # As `plan` says them, before there is a data set.
    work = next(stage.work for stage in plan(file_storage(tmp_path), load_workflow(name)) if stage.name == "pretrain")
    assert work["classes"] == row.classes
    assert work["updates"] == pytest.approx(row.updates, rel=1e-4)
    assert work["images"] == work["updates"] * row.batch
    assert 0 < work["memory_gb"] < 1000
    total = int(work["updates"])
    assert config.warmup(total) == WARMUP
    rate = {update: learning_rate(config, update + 1, total) for update in (0, WARMUP, total - 1)}
    end = 1e-5 if row.decay == "linear" else 0.0
    assert rate[0] == 0.0
    assert rate[WARMUP] == pytest.approx(row.lr)
    assert rate[total - 1] == pytest.approx(end, abs=row.lr / (total - WARMUP) * 1.01)
    middle = learning_rate(config, WARMUP + (total - WARMUP) // 2 + 1, total)
    assert middle == pytest.approx((row.lr + end) / 2, rel=1e-4)


@pytest.mark.parametrize("name", ROWS)
def test_what_is_decayed_and_the_loss_at_the_start(name):
    row, config = ROWS[name], pretraining(name)
    model = build(thin(config.model), 28 if row.model == "H/14" else 32, row.classes)
    initialize(model, seed=0)
    decayed = decayed_names(model, config)
    assert {group["weight_decay"] for group in make_optimizer(model, config).param_groups} == {0.0, row.weight_decay}
    expected = {f"blocks.{block}.{kernel}" for block in range(2) for kernel in KERNELS} | {"patch_embed.proj.weight"}
    expected |= {"pre_logits.fc.weight"} if row.head == "mlp_tanh" else set()
    if isinstance(config.model, BitConfig):
        expected = set()
    convolutions = {name for name, _ in model.named_parameters() if re.search(r"conv\d?\.weight$", name)}
    assert bool(convolutions) == row.model.startswith("R")
    assert decayed == expected | convolutions | {"head.weight"}
    with torch.inference_mode():
        logits = model.eval()(random_images(2, model.resolution))
    loss = cross_entropy(logits, torch.tensor([0, 1]), loss=row.loss).item()
    sigmoid = row.classes * math.log1p(math.exp(row.bias)) - row.bias
    assert loss == pytest.approx(sigmoid if row.loss == "sigmoid" else math.log(row.classes), rel=1e-5)
    if row.classes == 21_843 and row.loss == "sigmoid":
        assert loss == pytest.approx(10.99, abs=0.005)


@pytest.mark.parametrize("name", BIT)
def test_big_transfer_is_that_of_its_paper(name, tmp_path):
    images, classes, loss, bias = BIT[name]
    config = pretraining(name)
    assert config.model == BitConfig.model_validate({**model_config("R50x1").model_dump(), "head_bias": bias})
    assert (config.optimizer, config.momentum, config.resolution, config.loss) == ("sgd", 0.9, 224, loss)
    (work,) = (s.work for s in plan(file_storage(tmp_path), load_workflow(name)) if s.name == "pretrain")
    assert work["classes"] == classes
    total = int(work["updates"])
    assert total == pytest.approx(90 * images / 4096, rel=1e-4)
    # 0.03 for 256 images, in proportion; a tenth of it from epochs 30, 60 and 80 on.
    rates = [learning_rate(config, 1, total), learning_rate(config, 2501, total), learning_rate(config, 5001, total)]
    assert rates == pytest.approx([0.0, 0.24, 0.48])
    for epoch, before in ((30, 0.48), (60, 0.048), (80, 0.0048)):
        fall = round(epoch / 90 * total)
        assert learning_rate(config, fall, total) == pytest.approx(before)
        assert learning_rate(config, fall + 1, total) == pytest.approx(before / 10)
    assert learning_rate(config, total, total) == pytest.approx(0.00048)
    model = build(thin(config.model), 32, classes)
    initialize(model, seed=0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = make_optimizer(model, config).param_groups
    # Added to the gradient it would be 0.0001: momentum makes 1 / (1 - 0.9) times as much of it.
    assert sorted({group["weight_decay"] for group in groups}) == pytest.approx([0.0, 0.0001 / (1 - config.momentum)])
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    convolutions = {name for name in names.values() if re.search(r"conv\d?\.weight$", name)}
    assert len(convolutions) > 8
    assert decayed == convolutions | {"head.weight"}


def test_masked_patch_prediction_is_that_of_the_appendix(tmp_path):
    config = pretraining("masked/b16")
    assert config.model == model_config("B/16")
    assert config.masked == MaskedConfig(ratio=0.5, target="mean_colour", mask_share=0.8, random_share=0.1)
    (work,) = (s.work for s in plan(file_storage(tmp_path), load_workflow("masked/b16")) if s.name == "pretrain")
    # 14 epochs of JFT-300M, as the paper says.
    assert (work["updates"], work["images"] / JFT) == (1_000_000, pytest.approx(14, abs=0.5))
    assert (config.optimizer, config.global_batch, config.decay) == ("adamw", 4096, "cosine")
    rate = [learning_rate(config, update, 1_000_000) for update in (1, WARMUP + 1, 505_001, 1_000_000)]
    assert rate == pytest.approx([0.0, 2e-4, 1e-4, 0.0], abs=1e-8)
    assert (config.resolution, config.lr_batch, config.weight_decay, config.clip) == (224, 4096, 0.1, 0.0)
    model = MaskedVisionTransformer(as_vit(thin(config.model)), 32, config.masked)
    initialize(model, seed=0)
    assert decayed_names(model, config) == {
        *(f"blocks.{block}.{kernel}" for block in range(2) for kernel in KERNELS),
        *("patch_embed.proj.weight", "prediction.weight"),
    }
    images = random_images(2, 32)
    places = torch.tensor([[0, 1], [2, 3]])
    with torch.inference_mode():
        logits = model.eval()(images, places, places)
    # 512 colours, equally likely.
    rows = logits.flatten(0, -2)
    loss = cross_entropy(rows, torch.zeros(len(rows), dtype=torch.int64), loss="softmax")
    assert loss.item() == pytest.approx(math.log(512), rel=1e-5)


def test_the_protocol_on_a_laptop_is_that_of_table_4():
    ours, theirs = load_workflow("finetune/fashion").stages, load_workflow("finetune/cifar10").stages
    fields = ("optimizer", "momentum", "weight_decay", "decay", "clip", "global_batch", "precision", "zero_stage")
    for name in ("finetune-lr-0_01", "final-seed-0", "final-seed-2"):
        own, table = (trained(stages, name) for stages in (ours, theirs))
        assert {field: getattr(own, field) for field in fields} == {field: getattr(table, field) for field in fields}
        assert (own.train_splits, own.evaluate_splits) == (table.train_splits, table.evaluate_splits)
        assert (own.lr_from, own.resolution) == (table.lr_from, 40)
    # Pretrained at 28 pixels on the images whose classes are not held out; fine-tuned on all of them.
    assert ours["ingest"].validation_fraction == theirs["ingest"].validation_fraction
    assert (ours["upstream"].held_out_classes, ours["ingest"].held_out_classes) == (3, 0)
    assert trained(ours, "final-seed-1").data == "ingest"


def trained(stages: dict[str, StageConfig], name: str) -> FinetuneConfig:
    config = stages[name]
    assert isinstance(config, FinetuneConfig)
    return config


@pytest.mark.parametrize("name", TABLE_4)
def test_fine_tuning_is_that_of_table_4(name):
    updates, rates, kept, warmup, images, classes = TABLE_4[name]
    stages = load_workflow(name).stages
    ingest = stages["ingest"]
    trained = {name: stage for name, stage in stages.items() if isinstance(stage, FinetuneConfig)}
    tuned = [stage for name, stage in trained.items() if name.startswith("finetune")]
    final = [stage for name, stage in trained.items() if name.startswith("final")]
    assert isinstance(ingest, IngestConfig)
    assert ingest.validation_fraction == kept
    assert ingest.expected is not None
    assert (ingest.expected.train_images, ingest.expected.classes) == (images, classes)
    assert tuple(config.lr for config in tuned) == rates
    choice = stages["finetune"]
    if len(rates) > 1:
        assert isinstance(choice, ChoiceConfig)
        assert (choice.metric, choice.mode) == ("validation/accuracy", "max")
    # The rate is chosen without a look at the test split; then all training images are learned, with three seeds.
    assert {(config.train_splits, config.evaluate_splits) for config in tuned} == {(("train",), ("validation",))}
    assert [config.seed for config in final] == [0, 1, 2]
    assert {config.train_splits for config in final} == {("train", "validation")}
    assert {config.lr_from for config in final} == ({"finetune"} if len(rates) > 1 else {None})
    for config in [*tuned, *final]:
        model = build(thin(model_config("B/16").for_finetuning(config.dropout, 0.0)), 32, classes)
        optimizer = make_optimizer(model, config)
        assert isinstance(optimizer, torch.optim.SGD)
        assert {(group["momentum"], group["weight_decay"]) for group in optimizer.param_groups} == {(0.9, 0.0)}
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
        assert config.warmup(updates) == warmup
        assert (config.optimizer, config.momentum, config.weight_decay) == ("sgd", 0.9, 0.0)
        assert (config.global_batch, config.resolution, config.clip) == (512, 384, 1.0)
        assert (config.resampling, config.loss, config.dropout) == ("scipy_bilinear", "softmax", 0.0)
        total = config.total_updates(1)
        assert total == updates
        rate = [learning_rate(config, update, total) for update in (1, warmup + 1, (warmup + total) // 2 + 1, total)]
        assert rate == pytest.approx([0.0, config.lr, config.lr / 2, 0.0], abs=config.lr * 1e-4)


@pytest.mark.parametrize("name", ROWS)
def test_the_data_set_that_a_recipe_is_for_is_named(name):
    ingest = load_workflow(name).stages["ingest"]
    assert isinstance(ingest, IngestConfig)
    assert ingest.expected is not None
    assert ingest.expected.train_images == pytest.approx(ROWS[name].images, rel=1e-4)
