"""Masked patch prediction: what is corrupted, what is predicted, and that it trains like everything else."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from cluster.storage import open_storage
from stages.context import Context
from stages.data.evaluation_loader import evaluation_batches
from stages.data.pixels import normalise
from stages.ingest.config import FolderSource, IngestConfig
from stages.ingest.run import run as run_ingest
from stages.models.config import ModelConfig
from stages.models.initialize import initialize
from stages.models.masked import MaskedVisionTransformer
from stages.models.masked_config import MaskedConfig
from stages.training.examples import Example
from stages.training.loop import train
from stages.training.masked import MASK, MaskedPrediction, colours, corruption
from tests.unit.stages.models.outputs import small_config
from tests.unit.stages.training.conftest import Stage
from tests.unit.stages.training.test_loop import points
from tests.unit.stages.training.test_worlds import Run

TARGETS = ["mean_colour", "downsized", "pixels"]
SIDE = {"patch_size": 4}
LEARNING = {
    "model": {"width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 4},
    "save_every": 1000, "lr": 0.005, "warmup_updates": 20, "log_every": 50,
    "input": {"flip": False, "crop_area": (0.9, 1.0), "crop_ratio": (0.9, 1.1), "window": 64, "loader_threads": 0},
}  # fmt: skip
"""Settings with which some hundred updates of a few seconds are enough to tell."""


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    """Both ends of the two colour photographs that come with scikit-learn."""
    squares = [photo[:, start : start + 427] for photo in load_sample_images().images for start in (0, 213)]
    return np.stack([np.asarray(Image.fromarray(square).resize((112, 112))) for square in squares])


def example(pixels: np.ndarray, first: int = 0, *, training: bool = True) -> Example:
    images, labels = torch.from_numpy(pixels), torch.zeros(len(pixels), dtype=torch.int64)
    samples = np.arange(first, first + len(pixels))
    return Example(
        pixels=images, images=normalise(images), labels=labels, targets=labels, samples=samples, training=training
    )


def patches_of(image: np.ndarray, side: int) -> list[np.ndarray]:
    """Row by row, each [S, S, 3]."""
    corners = itertools.product(range(0, image.shape[0], side), range(0, image.shape[1], side))
    return [image[y : y + side, x : x + side].astype(np.float64) for y, x in corners]


def colour(part: np.ndarray) -> int:
    red, green, blue = np.floor(part.mean(axis=(0, 1)) * 8 / 256).astype(int)
    return red * 64 + green * 8 + blue


# What is predicted


@pytest.mark.parametrize("side", [14, 16])
def test_a_patch_has_one_of_512_mean_colours(photos, side):
    expected = [[colour(patch) for patch in patches_of(photo, side)] for photo in photos]
    assert colours(torch.from_numpy(photos), side, 1)[..., 0].tolist() == expected
    # Photographs: of many colours, few of them grey.
    found = np.unique(expected)
    assert len(found) > 30
    assert np.mean([value % 8 == value // 64 == value // 8 % 8 for value in found]) < 0.25


@pytest.mark.parametrize(("side", "edges"), [(16, [0, 4, 4, 8, 8, 12, 12, 16]), (14, [0, 4, 3, 7, 7, 11, 10, 14])])
def test_a_patch_of_four_by_four_has_a_colour_for_each_part(photos, side, edges):
    cuts = [slice(*pair) for pair in zip(edges[::2], edges[1::2], strict=True)]
    expected = [
        [[colour(patch[rows, columns]) for rows in cuts for columns in cuts] for patch in patches_of(photo, side)]
        for photo in photos
    ]
    assert colours(torch.from_numpy(photos), side, 4).tolist() == expected


def test_colours_at_the_edges_of_their_levels():
    values = [(0, 0), (31, 0), (32, 1), (223, 6), (224, 7), (255, 7)]
    for grey, level in values:
        image = torch.full((1, 4, 4, 3), grey, dtype=torch.uint8)
        assert colours(image, 4, 1).item() == level * 73
    # A mean just below an edge stays below it.
    image = torch.full((1, 4, 4, 3), 32, dtype=torch.uint8)
    image[0, 0, 0, 2] = 31
    assert colours(image, 4, 1).item() == 64 + 8


@pytest.mark.parametrize("target", TARGETS)
def test_losses_are_those_of_a_plain_statement(photos, target):
    model = ModelConfig.model_validate({**small_config().model_dump(), "patch_size": 14})
    config = MaskedConfig(target=target)
    objective = MaskedPrediction(config, model, seed=3)
    question = objective.question(example(photos, first=70))
    _, places, sources = question.inputs
    assert places.shape == sources.shape == (4, 32)
    outputs = torch.randn(4, 32, config.outputs(model), generator=torch.Generator().manual_seed(0))
    expected, right = [], []
    for photo, own, said in zip(photos, places.tolist(), outputs.double().numpy(), strict=True):
        patches = patches_of(photo, 14)
        if target == "pixels":
            # Channel by channel, as a convolution's kernel has them.
            wanted = np.stack([patches[place].transpose(2, 0, 1).ravel() / 127.5 - 1 for place in own])
            expected.append(((said - wanted) ** 2).mean())
            continue
        cells = 1 if target == "mean_colour" else 16
        classes = colours(torch.from_numpy(photo[None]), 14, math.isqrt(cells))[0].numpy()[own]
        scores = said.reshape(32, cells, 512)
        logs = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
        expected.append(-np.take_along_axis(logs, classes[..., None], -1).mean())
        right.append((scores.argmax(-1) == classes).mean())
    np.testing.assert_allclose(objective.losses(outputs, question), expected, rtol=1e-5)
    assert float(objective.loss(outputs, question)) == pytest.approx(np.mean(expected), rel=1e-5)
    assert objective.has_accuracy is (target != "pixels")
    if right:
        np.testing.assert_allclose(objective.hits(outputs, question), right)


# What is corrupted


def drawn(samples: np.ndarray, patches: int = 16, purpose: str = "corruption", **fields):
    return corruption(samples, MaskedConfig.model_validate(fields), patches, seed=5, purpose=purpose)


def test_half_of_the_patches_of_every_image_are_corrupted_each_alike():
    count = 30_000
    places, sources = drawn(np.arange(count))
    assert places.shape == sources.shape == (count, 8)
    assert (np.diff(np.sort(places, axis=1), axis=1) > 0).all()
    assert drawn(np.arange(3), 196)[0].shape == (3, 98)
    assert drawn(np.arange(3), 49, ratio=0.15)[0].shape == (3, 7)
    # Six standard deviations.
    np.testing.assert_allclose(np.bincount(places.ravel()) / count, 0.5, atol=6 * math.sqrt(0.25 / count))


def test_eight_tenths_are_masked_one_is_another_patch_and_one_stays():
    places, sources = drawn(np.arange(30_000))
    total = places.size
    other = (sources != MASK) & (sources != places)
    for found, share in ((sources == MASK, 0.8), (other, 0.1), (sources == places, 0.1)):
        assert found.mean() == pytest.approx(share, abs=6 * math.sqrt(share * (1 - share) / total))
    # Any of the others, each as often.
    distance = (sources[other] - places[other]) % 16
    shares = np.bincount(distance, minlength=16) / other.sum()
    assert shares[0] == 0
    np.testing.assert_allclose(shares[1:], 1 / 15, atol=6 * math.sqrt(1 / 15 / other.sum()))


def test_shares_can_be_set():
    _, sources = drawn(np.arange(500), mask_share=1.0, random_share=0.0)
    assert (sources == MASK).all()
    places, sources = drawn(np.arange(500), mask_share=0.0, random_share=1.0)
    assert ((sources != places) & (sources != MASK)).all()
    places, sources = drawn(np.arange(500), mask_share=0.0, random_share=0.0)
    assert (sources == places).all()


def test_what_is_corrupted_follows_from_the_samples_number():
    whole, part = drawn(np.arange(100)), drawn(np.arange(40, 60))
    for all_of_them, some in zip(whole, part, strict=True):
        assert (all_of_them[40:60] == some).all()
    assert len({tuple(row) for row in whole[0].tolist()}) == 100
    assert (drawn(np.arange(100), purpose="corruption of evaluations")[0] != whole[0]).any()


# The network


def network(**fields) -> tuple[MaskedVisionTransformer, MaskedPrediction]:
    config, masked = small_config(**fields), MaskedConfig()
    model = MaskedVisionTransformer(config, 16, masked)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model, MaskedPrediction(masked, config, seed=5)


@pytest.mark.parametrize("pool", ["token", "average"])
def test_the_embeddings_alone_are_corrupted_and_the_corrupted_alone_are_predicted(photos, pool):
    model, objective = network(pool=pool)
    images, places, sources = objective.question(example(photos[:, :16, :16].copy())).inputs
    found = model(images, places, sources)
    assert {"mask", "other", "own"} == {
        "mask" if source == MASK else "own" if source == place else "other"
        for place, source in zip(places.flatten().tolist(), sources.flatten().tolist(), strict=True)
    }
    for image, own, put, said in zip(images, places.tolist(), sources.tolist(), found, strict=True):
        clean = model.patch_embed(image[None])[0]
        corrupted = clean.clone()
        for place, source in zip(own, put, strict=True):
            corrupted[place] = model.mask_token[0, 0] if source == MASK else clean[source]
        tokens = model.encode(corrupted[None])[0, 1 if pool == "token" else 0 :]
        torch.testing.assert_close(said, model.prediction(tokens[own]), rtol=0, atol=1e-5)


def test_the_loss_is_on_corrupted_patches_alone(photos):
    model, objective = network()
    question = objective.question(example(photos[:, :16, :16].copy()))
    kept = []
    model.norm.register_forward_hook(lambda module, inputs, output: kept.append(output))
    loss = objective.loss(model(*question.inputs), question)
    kept[0].retain_grad()
    loss.backward()
    touched = kept[0].grad.abs().sum(dim=-1) > 0
    expected = torch.zeros(4, 17, dtype=torch.bool).scatter(1, 1 + question.inputs[1], torch.tensor(True).expand(4, 8))
    assert torch.equal(touched, expected)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_it_begins_with_all_colours_equally_likely(photos):
    model, objective = network()
    initialize(model, 5)
    question = objective.question(example(photos[:, :16, :16].copy()))
    loss = objective.loss(model(*question.inputs), question).detach()
    assert float(loss) == pytest.approx(math.log(512), abs=1e-5)
    assert 0.01 < float(model.mask_token.detach().std()) < 0.03


# Training


def masked_job(stage, target="mean_colour", *, model=None, **fields):
    return replace(stage.job(model={**SIDE, **(model or {})}, **fields), masked=MaskedConfig(target=target))


def constant_loss(stage, target: str) -> float:
    """The least loss on the validation split of a network that looks at nothing."""
    job = masked_job(stage, target)
    objective = MaskedPrediction(MaskedConfig(target=target), job.model, job.seed)
    found = []
    for batch in evaluation_batches(
        stage.storage, job.dataset, ("validation",), resolution=16, batch=64, rank=0, world_size=1,
        classes=job.class_ids, config=job.config.input,
    ):  # fmt: skip
        question = objective.question(example(batch.images.numpy(), int(batch.samples[0]), training=False))
        found.append(question.targets[batch.mask].flatten(0, 1))
    every = torch.cat(found)
    if target == "pixels":
        return float(every.var(dim=0, unbiased=False).mean())
    losses = []
    for cell in every.T:
        shares = torch.bincount(cell) / len(cell)
        losses.append(float(-(shares * shares.clamp(min=1e-12).log()).sum()))
    return float(np.mean(losses))


@pytest.mark.parametrize(("target", "part"), [("mean_colour", 0.8), ("downsized", 0.9), ("pixels", 0.6)])
def test_it_learns_what_a_constant_cannot_say(make_stage, target, part):
    stage = make_stage(f"learns-{target}")
    outcome = train(masked_job(stage, target, updates=200, **LEARNING), stage.rank())
    assert outcome["metrics"]["validation/loss"] < part * constant_loss(stage, target)
    assert ("validation/accuracy" in outcome["metrics"]) is (target != "pixels")
    assert (len(points(stage, 1, "train/accuracy")) == 4) is (target != "pixels")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """400 squares of the two photographs, ingested from PNG files."""
    folder, generator = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for name, photo in zip(("temple", "flower"), load_sample_images().images, strict=True):
        (folder / "in" / name).mkdir(parents=True)
        for number in range(200):
            y, x = (int(generator.integers(0, side - 96)) for side in photo.shape[:2])
            square = Image.fromarray(photo[y : y + 96, x : x + 96]).resize((32, 32))
            square.save(folder / "in" / name / f"{number}.png")
    storage = open_storage(f"file://{folder / 'root'}")
    context = Context(
        storage=storage, folder="stages/ingest/x", attempt=1, seed=0, gang=None,
        tasks=lambda function, items, label: [function(item) for item in items],
    )  # fmt: skip
    config = IngestConfig(source=FolderSource(path=str(folder / "in")), validation_fraction=0.2)
    return storage, run_ingest(config, {}, context).output


def test_it_learns_colours(photographs):
    stage = Stage(*photographs, "stages/pretrain/colours")
    job = replace(masked_job(stage, updates=200, **LEARNING), class_ids=(0, 1))
    outcome = train(job, stage.rank())
    constant = constant_loss(stage, "mean_colour")
    # Dozens of colours, each seldom.
    assert constant > 3
    assert outcome["metrics"]["validation/loss"] < 0.85 * constant


@pytest.mark.parametrize(
    "fields",
    [
        {"zero_stage": 0},
        {"zero_stage": 1, "precision": "bf16"},
        {"zero_stage": 2, "model": {"dropout": 0.2}, "micro_batch": 8},
        {"zero_stage": 3, "activation_checkpointing": True, "polyak_decay": 0.9},
    ],
    ids=str,
)
def test_a_stop_and_a_resume_give_the_same_bits(make_stage, fields):
    whole, stage, calls = make_stage("whole"), make_stage("stopped"), itertools.count(1)
    train(masked_job(whole, **fields), whole.rank())
    assert train(masked_job(stage, **fields), stage.rank(lambda: next(calls) >= 5))["outcome"] == "stopped"
    assert train(masked_job(stage, **fields), stage.rank())["outcome"] == "done"
    assert list(stage.losses(2)) == [6, 7, 8]
    assert {**stage.losses(1), **stage.losses(2)} == whole.losses(1)
    assert stage.weights(2) == whole.weights(1)


@pytest.mark.parametrize(
    "fields",
    [
        {"zero_stage": 1, "micro_batch": 8},
        {"zero_stage": 2, "activation_checkpointing": True},
        {"zero_stage": 3, "offload": "parameters"},
    ],
    ids=str,
)
def test_what_changes_rounding_alone(make_stage, fields):
    whole, other = make_stage("whole"), make_stage("other")
    outcomes = [
        train(masked_job(whole, "downsized", zero_stage=0), whole.rank()),
        train(masked_job(other, "downsized", **fields), other.rank()),
    ]
    np.testing.assert_allclose(list(whole.losses(1).values()), list(other.losses(1).values()), rtol=0, atol=1e-5)
    losses = [outcome["metrics"]["validation/loss"] for outcome in outcomes]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_two_ranks_have_the_curve_of_one(make_stage, tmp_path: Path, zero_stage):
    stages, outcomes = [], []
    for ranks in (1, 2):
        run = Run(make_stage(f"of-{ranks}"), tmp_path / str(ranks), updates=12, zero_stage=zero_stage, model=SIDE)
        make = run.stage.job
        run.stage.job = lambda make=make, **fields: replace(make(**fields), masked=MaskedConfig())
        outcomes.append(run.go_on(ranks=ranks))
        stages.append(run)
    one, two = (run.losses() for run in stages)
    assert len(one) == 12
    assert one[-1] < one[0] - 0.5
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)
    # In evaluations too every image is asked the same.
    for name, value in outcomes[0]["metrics"].items():
        assert outcomes[1]["metrics"][name] == pytest.approx(value, abs=1e-5)
