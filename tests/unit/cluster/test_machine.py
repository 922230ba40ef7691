"""What a machine says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import machine


@pytest.mark.parametrize("number", [0, 1], ids=["version 2", "version 1"])
def test_a_container_has_the_memory_of_its_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int):
    names = [str(tmp_path / "absent"), str(tmp_path / "absent")]
    names[number] = str(tmp_path / "limit")
    (tmp_path / "limit").write_text("1048576\n")
    monkeypatch.setattr(machine, "CGROUP_LIMITS", tuple(names))
    assert machine.memory_bytes() == 1048576


def test_the_loopback_has_its_addresses_and_nobody_has_anothers():
    name = machine.interface_of("127.0.0.1")
    assert name == "lo"
    assert "127.0.0.1" in machine._addresses("lo")
    assert machine.interface_of("203.0.113.7") is None


QUOTAS = {
    "version 2": ({"cpu.max": "150000 100000\n"}, 2),
    "version 2, a part of a core": ({"cpu.max": "20000 100000\n"}, 1),
    "version 2, no limit": ({"cpu.max": "max 100000\n"}, None),
    "version 1": ({"cpu.cfs_quota_us": "100000\n", "cpu.cfs_period_us": "100000\n"}, 1),
    "version 1, no limit": ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, None),
    "neither": ({}, None),
}


@pytest.mark.parametrize(("files", "expected"), QUOTAS.values(), ids=QUOTAS)
def test_a_container_has_the_cores_of_its_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files, expected):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CPU_QUOTAS", (str(tmp_path / "cpu.max"), str(tmp_path / "cpu.cfs_quota_us")))
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: set(range(3)))
    assert machine.cores() == (expected or 3)


@pytest.mark.parametrize("text", ["max\n", "9223372036854771712\n"])
def test_without_a_limit_it_is_the_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str):
    (tmp_path / "limit").write_text(text)
    monkeypatch.setattr(machine, "CGROUP_LIMITS", (str(tmp_path / "limit"),))
    found = machine.memory_bytes()
    assert found is not None
    assert 2**26 < found < 2**50
