"""A workflow's values for images that were seen and a place to run: sensible ones to begin with, no optimum.

A small data set, or a machine without GPUs, gets a small network at a low resolution, for a time that one waits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cluster.errors import UserError
from pipeline.beginning.here import Here
from pipeline.beginning.look import MEASURED, Seen
from stages.models.config import AnyModel, model_config
from stages.models.flops import forward_macs
from stages.models.resnet_config import BitConfig

SMALL = {"width": 192, "depth": 6, "num_heads": 3, "mlp_dim": 768, "patch_size": 8}
"""Of the recipe `folder`: what two cores train on some thousand images while one waits."""
SMALLER = {"width": 128, "depth": 4, "num_heads": 4, "mlp_dim": 512, "patch_size": 4}
"""For images of few pixels."""
FEW_PIXELS = 48
"""Shorter side below which images have few."""
BY_IMAGES = ((20_000, "Ti/16"), (300_000, "S/16"), (5_000_000, "B/16"))
"""On GPUs: the network for up to so many images; L/16 for more (paper, Figure 3: larger ones need more)."""
UNCOUNTED = 50_000
"""Training images that are assumed where none were counted."""
CLUSTER_GPUS, SECONDS = 8, 480.0
"""GPUs of a cluster; how long pretraining on cores may take, as far as its number of epochs decides on it."""
EPOCHS = (3, 5, 10, 15, 20, 30, 40, 60, 90)
ON_GPUS = ((10_000, 300), (100_000, 150), (2_000_000, 90), (20_000_000, 30))
"""Epochs for up to so many images."""
MEMORY = 2 * 2**30
"""Bytes of a machine's memory for each worker on cores."""
EFFICIENCY = 0.35
"""Part of the rate of a product of matrices that training reaches on cores: 0.4 and 0.5 were seen of small networks."""
GPU_RATE = 3e13
"""FLOP/s that training reaches on a GPU, to say how long it takes about: a modest one's."""
UPDATE, STAGE = 0.03, 25.0
"""Seconds that each update and each stage costs beside its arithmetic."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """To the four questions. None asks for a proposal."""

    images: str
    classes: int | None = None
    """How many classes pretraining sees; the others are held out. None: all."""
    model: str | None = None
    where: str = "local"
    """`local`, `cluster`, or the address of a Ray cluster's job server."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """The values of the stages. `seconds` is how long they take here in all, about; None for a cluster."""

    answers: Answers
    seen: Seen
    train: int
    """Images that pretraining has, about."""
    held_out: int
    test_fraction: float
    tested: bool
    """Whether there will be test images."""
    model: str | dict[str, Any]
    resolution: int
    finetune_resolution: int
    epochs: int
    finetune_epochs: int
    global_batch: int
    workers: int
    threads: int
    gpus: bool
    save_every: int
    shots: tuple[int, ...] = (1, 5, 10, 25)
    seconds: float | None = None
    notes: tuple[str, ...] = field(default=())
    """What whoever begins should know."""


def propose(answers: Answers, seen: Seen, here: Here) -> Proposal:
    """The proposal for these answers. Raises UserError for an answer that cannot be."""
    held_out = _held_out(answers.classes, seen)
    local = answers.where == "local"
    gpus = not local or bool(here.gpus)
    test_fraction = 0.2 if (seen.train or UNCOUNTED) < 20_000 else 0.05
    train = max(1, round(_left(seen, test_fraction) * (1 - held_out / (seen.classes or 1))))
    named = answers.model or _network(train, seen, gpus=gpus)
    config = _config(named)
    resolution = _resolution(config, seen.side, 224 if gpus else 64)
    papers = resolution == 224 and 384 % stride(config) == 0
    larger = 384 if papers else _near(config, 1.5 * resolution, above=resolution)
    most = max(1, min(4, here.cores, (here.memory or MEMORY) // MEMORY))
    workers, batch = _batch(train, (len(here.gpus) if local else CLUSTER_GPUS) if gpus else most, gpus=gpus)
    image = _seconds_an_image(config, resolution, here, gpus=gpus, workers=workers)
    epochs = _epochs(train, image + UPDATE / batch, gpus=gpus)
    finetune_epochs = max(2, round(epochs / 10)) if train < 1_000_000 else 8
    updates = max(1, epochs * train // batch)
    after = finetune_epochs * train * _seconds_an_image(config, larger, here, gpus=gpus, workers=workers)
    # Fewshot asks three networks, without going back.
    seconds = 5 * STAGE + updates * UPDATE + epochs * train * image + after + (seen.train or train) * image
    return Proposal(
        answers=answers,
        seen=seen,
        train=train,
        held_out=held_out,
        test_fraction=test_fraction,
        tested=_tested(seen, held_out, test_fraction),
        model=named,
        resolution=resolution,
        finetune_resolution=larger,
        epochs=epochs,
        finetune_epochs=finetune_epochs,
        global_batch=batch,
        workers=workers,
        threads=max(1, here.cores // workers) if not gpus else 1,
        gpus=gpus,
        save_every=min(500, max(20, updates // 20)),
        shots=_shots(seen, test_fraction),
        seconds=seconds if local else None,
        notes=tuple(_notes(seen, train)),
    )


def _held_out(classes: int | None, seen: Seen) -> int:
    if seen.classes is not None and seen.classes < 2:
        raise UserError(
            f"{_name(seen)} has one class: expected at least two, each in a folder of its own, since a network learns "
            "to tell classes apart"
        )
    if classes is None:
        return 0
    if seen.classes is None:
        raise UserError(f"--classes {classes}: the classes here are not counted before ingestion: take --classes all")
    if not 2 <= classes <= seen.classes:
        raise UserError(f"--classes {classes}: expected all, or 2 to {seen.classes}: there are {seen.classes} classes")
    return seen.classes - classes


def _name(seen: Seen) -> str:
    return str(seen.source.get("path", seen.source["kind"]))


def _kept(seen: Seen, test_fraction: float) -> float:
    """Part of the training images that stays for training once the splits that the source lacks are drawn."""
    return (
        1 - (0 if "validation" in seen.others else test_fraction / 2) - (0 if "test" in seen.others else test_fraction)
    )


def _left(seen: Seen, test_fraction: float) -> float:
    """Training images that are left once the splits that the source lacks are drawn: see `stages.ingest.splits`."""
    if not seen.exact or not seen.per_class:
        return (seen.train or UNCOUNTED) * _kept(seen, test_fraction)
    drawn = [test_fraction * ("test" not in seen.others), test_fraction / 2 * ("validation" not in seen.others)]
    return sum(max(1, count - sum(int(part * count + 0.5) for part in drawn)) for count in seen.per_class)


def _tested(seen: Seen, held_out: int, test_fraction: float) -> bool:
    if seen.source["kind"] == "webdataset":
        # Nothing is drawn from tars that stay as they are.
        return "test" in seen.source["shards"]
    if "test" in seen.others:
        return True
    drawn = sum(int(test_fraction * count + 0.5) > 0 for count in seen.per_class)
    return not seen.per_class or drawn > held_out


def _network(train: int, seen: Seen, *, gpus: bool) -> str | dict[str, Any]:
    if seen.side is not None and seen.side < FEW_PIXELS:
        return SMALLER
    return next((name for most, name in BY_IMAGES if train <= most), "L/16") if gpus else SMALL


def _config(named: str | dict[str, Any]) -> AnyModel:
    from pydantic import ValidationError

    try:
        return model_config(named)
    except ValidationError as error:
        known = str(error.errors()[0]["msg"]).partition("expected ")[2]
        raise UserError(f"--model {named}: expected {known or 'a network such as S/16'}") from error


def stride(config: AnyModel) -> int:
    """Pixels that a resolution has to be a multiple of: of a ResNet, those of an element of its last map."""
    return 32 if isinstance(config, BitConfig) else config.stride


def _resolution(config: AnyModel, side: int | None, wanted: int) -> int:
    """About `wanted` pixels; less where the images have fewer, but at least four patches along a side."""
    pixels = max(4 * stride(config), min(wanted, side or wanted)) if stride(config) < 32 else max(wanted, 96)
    return _near(config, pixels)


def _near(config: AnyModel, pixels: float, above: int = 0) -> int:
    """The multiple of the network's stride that is nearest, and above `above`."""
    return max(round(pixels / stride(config)), above // stride(config) + 1, 1) * stride(config)


def _batch(train: int, most_workers: int, *, gpus: bool) -> tuple[int, int]:
    """Workers, and a global batch that is a multiple of them; of small data sets, at least eight batches an epoch."""
    wanted = max(1, train // (200 if gpus else 8))
    wanted = min(wanted, 4096) if gpus else min(wanted, 64)
    if gpus:
        wanted = max(wanted, min(64, max(1, train // 8)))
    workers = max(1, min(most_workers, wanted))
    return workers, workers * _power_of_two(wanted // workers)


def _power_of_two(number: int) -> int:
    """The largest one that is not above a number of 1 or more."""
    return 1 << (number.bit_length() - 1)


def _seconds_an_image(config: AnyModel, resolution: int, here: Here, *, gpus: bool, workers: int) -> float:
    """Forward and backward, at three times the forward pass's multiply-adds, of two operations each."""
    rate = GPU_RATE * workers if gpus else EFFICIENCY * here.flops
    return 6 * forward_macs(config, resolution, 1000) / rate


def _epochs(train: int, seconds_an_image: float, *, gpus: bool) -> int:
    if gpus:
        return next((epochs for most, epochs in ON_GPUS if train <= most), 14)
    fits = SECONDS / (train * seconds_an_image)
    return max((number for number in EPOCHS if number <= fits), default=EPOCHS[0])


def _shots(seen: Seen, test_fraction: float) -> tuple[int, ...]:
    """Those that every class has images for."""
    kept = None if seen.smallest is None else int(seen.smallest * _kept(seen, test_fraction))
    return tuple(shots for shots in (1, 5, 10, 25) if kept is None or shots <= max(1, kept))


def _notes(seen: Seen, train: int) -> list[str]:
    notes = []
    if seen.smallest is not None and seen.smallest < 3 and "test" not in seen.others:
        notes.append(
            f"a class has {seen.smallest} image{'s' if seen.smallest > 1 else ''}: from 3 on one is kept for the test"
        )
    if seen.unreadable:
        notes.append(
            f"{seen.unreadable} of some {MEASURED} images looked at are damaged: ingestion leaves such out, and stops "
            "above ingest.max_bad"
        )
    if train < 20_000:
        notes.append(
            "few images teach a network from scratch little: `patchline import` takes published weights to begin with "
            "(docs/formats.md)"
        )
    return notes
