"""Training goes on from any world size and ZeRO stage to any other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from stages.models.vit import VisionTransformer
from stages.models.weights_out import checkpoint_tensors, write_safetensors
from stages.training.loop import train
from stages.training.manifest import Damaged, read_manifest
from stages.training.restore import load_weights
from tests.unit.stages.training.files import checkpoint_files
from tests.unit.stages.training.ranks import run_ranks
from tests.unit.stages.training.test_loop import plain_losses

BATCH = 24
"""Has equal parts for 1, 2, 3 and 4 ranks."""


class Run:
    """One training run, made in parts."""

    def __init__(self, stage, notes: Path, **fields) -> None:
        self.stage, self.notes, self.fields, self.attempt = stage, notes, fields, 0
        notes.mkdir()

    def go_on(self, *, ranks: int, updates: int | None = None, **fields) -> dict:
        """Some updates more, or all that are left."""
        self.attempt += 1
        job = self.stage.job(global_batch=BATCH, save_every=1000, **self.fields, **fields)
        return run_ranks(
            job, self.stage.storage.url, self.stage.folder,
            ranks=ranks, attempt=self.attempt, notes=self.notes, stop_after=updates,
        )  # fmt: skip

    def losses(self) -> list[float]:
        found: dict[int, float] = {}
        for attempt in range(1, self.attempt + 1):
            found |= self.stage.losses(attempt)
        return [found[update] for update in sorted(found)]

    def samples(self) -> dict[int, list[int]]:
        """The rows of every global batch, in their order."""
        found: dict[int, list[int]] = {}
        for attempt in range(1, self.attempt + 1):
            for path in sorted(self.notes.glob(f"samples-{attempt}-*.json")):
                for update, rows in json.loads(path.read_text()).items():
                    found.setdefault(int(update), []).extend(rows)
        return found


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_a_world_that_changes_in_the_middle_gives_the_same_samples_and_the_same_curve(make_stage, tmp_path, zero_stage):
    fields = {"zero_stage": zero_stage, "updates": 20, "polyak_decay": 0.9}
    fixed, changing = (
        Run(make_stage("fixed"), tmp_path / "a", **fields),
        Run(make_stage("changing"), tmp_path / "b", **fields),
    )
    assert fixed.go_on(ranks=2)["outcome"] == "done"
    for ranks in (2, 1, 4, 3):
        assert changing.go_on(ranks=ranks, updates=4)["outcome"] == "stopped"
    assert changing.go_on(ranks=2)["outcome"] == "done"
    assert changing.samples() == fixed.samples()
    assert changing.samples() == {u: list(range((u - 1) * BATCH, u * BATCH)) for u in range(1, 21)}
    assert len(fixed.losses()) == 20
    np.testing.assert_allclose(changing.losses(), fixed.losses(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_ranks_that_accumulate_gradients_together_have_the_losses_of_a_plain_loop(make_stage, tmp_path, zero_stage):
    fields = {"updates": 20, "zero_stage": zero_stage, "micro_batch": 4}
    run = Run(make_stage("accumulating"), tmp_path / "notes", **fields)
    job = run.stage.job(global_batch=BATCH, **fields)
    # A rank's 12 rows in three turns.
    assert job.config.micro_batch_for(2) == 4
    assert run.go_on(ranks=2)["outcome"] == "done"
    found = run.losses()
    assert len(found) == 20
    np.testing.assert_allclose(found, plain_losses(run.stage, job), rtol=0, atol=1e-5)


WALK = [
    (0, 1), (2, 4), (3, 2), (1, 3), (0, 4), (3, 1), (2, 2), (0, 3),
    (1, 1), (3, 4), (0, 2), (2, 3), (1, 4), (3, 3), (2, 1), (1, 2), (0, 1),
]  # fmt: skip
"""ZeRO stage and world size, each of the 16 pairs, and the first one again."""


@pytest.mark.parametrize("polyak_decay", [0.0, 0.9])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_checkpoints_go_from_each_zero_stage_and_world_size_to_each(make_stage, tmp_path, optimizer, polyak_decay):
    assert set(WALK) == {(stage, ranks) for stage in range(4) for ranks in range(1, 5)}
    decays = {"weight_decay": 0.5, "head_weight_decay": 2.0}
    fields = {"optimizer": optimizer, "polyak_decay": polyak_decay, "updates": len(WALK), **decays}
    whole = make_stage("whole")
    train(whole.job(global_batch=BATCH, zero_stage=0, **fields), whole.rank())
    walking = Run(make_stage("walking"), tmp_path / "notes", **fields)
    for zero_stage, ranks in WALK:
        walking.go_on(ranks=ranks, updates=1, zero_stage=zero_stage)
    expected = list(whole.losses(1).values())
    assert len(expected) == len(WALK)
    np.testing.assert_allclose(walking.losses(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_the_pieces_of_several_ranks_are_whole_tensors(make_stage, tmp_path, zero_stage):
    run = Run(make_stage("pieces"), tmp_path / "notes", updates=20, zero_stage=zero_stage)
    run.go_on(ranks=3, updates=1)
    storage, prefix = run.stage.storage, json.loads((run.notes / "kept.json").read_text())["1"]
    manifest = read_manifest(storage, prefix)
    sizes = [part["bytes"] for part in manifest["parts"]]
    assert len(sizes) == 3
    # Nobody writes more than a third, but for headers.
    assert max(sizes) < 1.2 * sum(sizes) / 3
    with checkpoint_files(storage, prefix) as files:
        read = {name: value for name, _, value in files.tensors(keys=frozenset({"weight"}))}
        model = VisionTransformer(run.stage.job().model, 16, 7)
        load_weights(model, files)
    with storage.writer("out.safetensors") as sink:
        write_safetensors(storage, checkpoint_tensors(storage, prefix, manifest, "weight"), sink)
    exported = safetensors.torch.load(storage.read("out.safetensors"))
    assert exported.keys() == read.keys()
    assert all(torch.equal(exported[name], read[name]) for name in read)
    # A part that says less than it should is found, whatever its sha256.
    with checkpoint_files(storage, prefix) as files:
        del files.manifest["parts"][1]
        with pytest.raises(Damaged, match="is not whole"):
            load_weights(model, files)


def test_ranks_of_one_machine_read_a_checkpoint_that_one_of_them_has_brought(make_stage, tmp_path):
    run = Run(make_stage("together"), tmp_path / "notes", updates=20, zero_stage=2)
    run.go_on(ranks=2, updates=1)
    run.go_on(ranks=3, updates=1)
    assert sorted(path.name for path in run.notes.glob("fetched-*")) == ["fetched-2-0"]
