"""What the benchmark of a GPU takes for a batch that does not fit."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bench import gpu


def sizes(monkeypatch: pytest.MonkeyPatch, fits: int, error: dict[str, Any]) -> dict[str, Any]:
    def child(name: str, variant: str, batch: int, fields: dict[str, Any]) -> dict[str, Any]:
        return {"images_per_s": float(batch)} if batch <= fits else error

    monkeypatch.delenv("PATCHLINE_BENCH_CPU", raising=False)
    monkeypatch.setattr(gpu, "child", child)
    return gpu.sizes("L")


@pytest.mark.parametrize(("fits", "batches"), [(64, [32, 64]), (100, [32, 64, 96]), (16, [])])
def test_a_lack_of_memory_ends_the_doubling(monkeypatch: pytest.MonkeyPatch, fits: int, batches: list[int]):
    found = sizes(monkeypatch, fits, {"error": "CUDA out of memory", "out_of_memory": True})
    assert found == {"images_per_s_by_batch": {batch: float(batch) for batch in batches}, "ended_by": "memory"}


def test_any_other_error_is_told(monkeypatch: pytest.MonkeyPatch):
    found = sizes(monkeypatch, 64, {"error": "No module named 'x'", "out_of_memory": False})
    assert found == {"images_per_s_by_batch": {32: 32.0, 64: 64.0}, "error": "batch 128: No module named 'x'"}
    missed = gpu.missed_by({"models": {"L/16": {**found, "vs_timm": 1.1, "mfu": 0.6}}, "ways": {}, "loader": {}})
    assert missed == ["L/16: batch 128: No module named 'x'"]


def test_an_error_of_the_peer_is_told(monkeypatch: pytest.MonkeyPatch):
    def child(name: str, variant: str, batch: int, *fields: Any) -> dict[str, Any]:
        if name == "timm":
            return {"error": "no such network", "out_of_memory": False}
        return {"images_per_s": 1.0} if batch == 32 else {"error": "CUDA out of memory", "out_of_memory": True}

    monkeypatch.setattr(gpu, "child", child)
    found = gpu.measure("L", {"timm": True, "matrix_tflops": 1.0})
    assert (found["largest_batch"], found["error"]) == (32, "batch 32: no such network")


def test_the_cap_is_told(monkeypatch: pytest.MonkeyPatch):
    found = sizes(monkeypatch, 10**6, {})
    assert max(found["images_per_s_by_batch"]) == gpu.LARGEST
    assert found["ended_by"] == "the largest batch that is tried, 1024"
    assert "error" not in found


@pytest.mark.parametrize(
    ("said", "lack"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.", True),
        ("RuntimeError: CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`", True),
        ("ValueError: 32 rows", False),
    ],
)
def test_a_lack_of_memory_is_known_by_what_is_said(monkeypatch: pytest.MonkeyPatch, said: str, lack: bool):
    class Done:
        returncode, stdout, stderr = 1, "", said

    monkeypatch.setattr(gpu.subprocess, "run", lambda *arguments, **options: Done)
    assert gpu.child("step", "L", 32, {}) == {"error": said.splitlines()[-1], "out_of_memory": lack}
