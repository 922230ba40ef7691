"""The loader that the training loop opens: of the threads and the memory that its place has."""

from dataclasses import replace

import pytest
import torch

from cluster import machine
from stages.training.loop import _loader


@pytest.mark.parametrize(("ranks", "threads"), [(1, 12), (2, 6), (5, 2)])
def test_ranks_of_a_machine_share_its_cores(make_stage, monkeypatch, ranks, threads):
    monkeypatch.setattr(machine, "CPU_QUOTAS", ())
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: set(range(12)))
    stage = make_stage("shared")
    with _loader(stage.job(input={}), replace(stage.rank(), local_world_size=ranks), 0) as loader:
        assert loader.threads == threads


@pytest.mark.parametrize("gpus", [0, 1])
def test_images_for_a_gpu_are_in_pinned_memory(make_stage, monkeypatch, gpus):
    """Such memory cannot be had without a GPU; whether it is asked for shows all the same."""
    pinned, plain = [], torch.empty

    def empty(*shape, pin_memory=False, **options):
        pinned.append(pin_memory)
        return plain(*shape, **options)

    stage = make_stage("pinned")
    with _loader(stage.job(gpus_per_worker=gpus), stage.rank(), 0) as loader:
        monkeypatch.setattr(torch, "empty", empty)
        next(loader)
    assert pinned == [gpus > 0]
