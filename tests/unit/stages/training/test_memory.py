"""The memory of training by formula: sums by hand, and what has to hold of any of them."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from cluster.errors import UserError
from stages.context import Rank
from stages.models.config import ModelConfig
from stages.training import devices, faults
from stages.training.config import TrainingConfig
from stages.training.fitting import fitting_moves
from stages.training.job import Job
from stages.training.memory import LIBRARIES, RESERVED, Memory, Network, checkpoint_bytes, memory

LARGE = Network(model=ModelConfig(variant="L", patch_size=16), resolution=224, num_classes=1000)
PARAMETERS = 304_326_632


def run(workers: int = 8, **fields) -> TrainingConfig:
    given = {
        "updates": 10,
        "global_batch": 512,
        "workers": workers,
        "gpus_per_worker": 1,
        "precision": "bf16",
        **fields,
    }
    return TrainingConfig.model_validate(given)


def of(config: TrainingConfig, network: Network = LARGE, device="cuda") -> Memory:
    return memory(config, network, config.most_workers, device)


def test_vit_large_with_zero_1_on_eight_gpus_by_hand():
    found = of(run(zero_stage=1))
    assert found.weights == 2 * PARAMETERS
    # fp32 masters and Adam's two moments, an eighth of each.
    assert found.optimizer == 3 * 4 * 38_040_829
    # fp32 sums of all; in bf16 the head's, 1,025,000, and one MLP kernel's, 4,194,304.
    assert found.gradients == 4 * PARAMETERS + 2 * (1_025_000 + 4_194_304)
    # 197 tokens of 1,024 numbers are 403,456 bytes, of 4,096 are 1,613,824. A block keeps eight and two of them, 16
    # heads' fp32 logarithms and the norms' figures.
    block = 8 * 403_456 + 2 * 1_613_824 + 4 * 16 * 197 + 16 * 197
    image = 2 * (3 * 224 * 224 + 1000) + 24 * block + (403_456 + 1_613_824)
    assert found.activations == 64 * image
    assert found.buffers == 0
    assert found.total == 12_380_931_868


def test_a_higher_zero_stage_needs_no_more():
    for again in (False, True):
        totals = [of(run(zero_stage=stage, activation_checkpointing=again)).total for stage in (1, 2, 3)]
        assert totals == sorted(totals, reverse=True)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_more_workers_at_the_same_micro_batch_need_no_more(stage: int):
    totals = [
        of(run(zero_stage=stage, workers=workers, global_batch=16 * workers, micro_batch=16)).total
        for workers in (2, 8, 64)
    ]
    assert totals == sorted(totals, reverse=True)


def test_checkpointing_and_smaller_micro_batches_save_activations():
    plain, again, halved = of(run()), of(run(activation_checkpointing=True)), of(run(micro_batch=32))
    assert again.activations < plain.activations / 5
    assert halved.activations == plain.activations / 2
    assert again.weights == halved.weights == plain.weights


def test_offloading_moves_the_optimizer_to_the_machine():
    here, there = of(run()), of(run(offload="optimizer"))
    assert there.optimizer == 0
    assert there.host - here.host >= here.optimizer


def test_on_a_cpu_attention_and_images_ahead_count():
    config = run(gpus_per_worker=0, precision="fp32", workers=1, global_batch=16)
    cpu, gpu = of(config, device="cpu"), of(config, device="cuda")
    assert cpu.activations > gpu.activations
    # The batch in use and two ahead, three bytes a pixel.
    assert cpu.buffers == 3 * 16 * 3 * 224 * 224 + LIBRARIES


def test_a_checkpoint_has_fp32_weights_and_all_optimizer_tensors():
    assert checkpoint_bytes(run(), PARAMETERS) == 3 * 4 * PARAMETERS
    assert checkpoint_bytes(run(polyak_decay=0.99), PARAMETERS) == 4 * 4 * PARAMETERS
    assert checkpoint_bytes(run(optimizer="sgd"), PARAMETERS) == 2 * 4 * PARAMETERS


def test_moves_fit_and_the_smallest_comes_first():
    config = run(zero_stage=2)
    moves = fitting_moves(config, LARGE, 8, "cuda", 8e9)
    assert [move.changes for move in moves] == [{"micro_batch": 32}, {"activation_checkpointing": True}]
    for move in moves:
        changed = TrainingConfig.model_validate({**config.model_dump(), **move.changes})
        assert of(changed).total == move.memory.total <= 8e9
    assert str(moves[1]).startswith("activation_checkpointing=true (")


def test_changes_are_combined_where_one_alone_is_not_enough():
    (move,) = fitting_moves(run(zero_stage=1, workers=2, global_batch=256), LARGE, 2, "cuda", 4e9)
    assert len(move.changes) > 1
    assert move.changes["activation_checkpointing"] is True
    assert move.memory.total <= 4e9


def test_nothing_makes_what_is_too_large_fit():
    assert fitting_moves(run(), LARGE, 8, "cuda", 5e8) == []


def told(config: TrainingConfig, monkeypatch: pytest.MonkeyPatch, limit: float | None) -> str:
    """What is told where rank 3 of 8 runs out of memory on devices with so many bytes."""
    monkeypatch.setattr(faults, "memory_limit", lambda config, local_rank: limit)
    job = Job(
        config=config,
        model=LARGE.model,
        resolution=224,
        dataset=None,
        splits=(),
        evaluation={},
        class_ids=tuple(range(1000)),
        updates=10,
        seed=0,
    )
    rank = object.__new__(Rank)
    for name, value in {"rank": 3, "world_size": 8, "local_rank": 3}.items():
        object.__setattr__(rank, name, value)
    with pytest.raises(UserError) as error, faults.explained_memory(job, rank):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB\nmore lines")
    return str(error.value)


FIELDS = ("micro_batch=", "zero_stage=", "activation_checkpointing=", "offload=")


def test_out_of_memory_is_told_with_figures(monkeypatch):
    text = told(run(zero_stage=2), monkeypatch, None)
    assert "rank 3 ran out of memory (CUDA out of memory. Tried to allocate 20 MiB)" in text
    assert f"needs about {of(run(zero_stage=2)).total / 1e9:.1f} GB a worker: try " in text
    for field in ("micro_batch=32 (", "zero_stage=3 (", "activation_checkpointing=true (", "offload=optimizer ("):
        assert field in text


def test_out_of_memory_names_the_smallest_changes_that_fit_the_device(monkeypatch):
    text = told(run(zero_stage=2), monkeypatch, 8e9)
    assert ", of 8.0 GB: try micro_batch=32 (" in text
    # Either saves memory, and not enough of it.
    assert [field for field in FIELDS if field in text] == ["micro_batch=", "activation_checkpointing="]


def test_out_of_memory_names_a_combination_where_no_single_change_fits(monkeypatch):
    config = run(zero_stage=1, micro_batch=64)
    singles = [{"micro_batch": 1}, {"zero_stage": 3}, {"activation_checkpointing": True}, {"offload": "optimizer"}]
    limit = min(of(config.model_copy(update=change)).total for change in singles) - 1
    (move,) = fitting_moves(config, LARGE, 8, "cuda", limit)
    assert len(move.changes) > 1
    text = told(config, monkeypatch, limit)
    assert text.endswith(f": try {move}")


def test_out_of_memory_where_nothing_fits_asks_for_larger_devices(monkeypatch):
    assert told(run(), monkeypatch, 5e8).endswith("of 0.5 GB: no setting makes it fit: take devices with more")


def test_out_of_memory_where_the_model_holds_it_possible_names_what_saves_memory(monkeypatch):
    config = run(zero_stage=2)
    assert told(config, monkeypatch, 80e9) != told(config, monkeypatch, None)
    text = told(config, monkeypatch, 80e9)
    assert [field for field in FIELDS if field in text] == list(FIELDS)


def test_on_a_cpu_the_process_and_the_copy_of_a_checkpoint_are_taken_off(monkeypatch):
    config = run(gpus_per_worker=0, zero_stage=2)
    monkeypatch.setattr(faults, "resident_memory", lambda: 400_000_000)
    left = 20e9 - 0.4e9 - of(config, device="cpu").host
    assert f" GB a worker, of {left / 1e9:.1f} GB: " in told(config, monkeypatch, 20e9)


def test_workers_of_one_machine_have_equal_parts_of_its_memory(monkeypatch):
    monkeypatch.setattr(devices, "memory_bytes", lambda: 64)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert devices.memory_limit(run(gpus_per_worker=0), 0) == 16
    monkeypatch.setattr(devices, "memory_bytes", lambda: None)
    assert devices.memory_limit(run(gpus_per_worker=0), 0) is None


def test_a_gpu_leaves_what_the_plan_leaves(monkeypatch):
    properties = SimpleNamespace(total_memory=80_000_000_000)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert devices.memory_limit(run(), 1) == 80e9 - RESERVED
    assert devices.memory_limit(run(), 2) is None


def test_the_model_is_light():
    code = "import sys, stages.training.fitting; print('torch' in sys.modules, 'numpy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False False"
