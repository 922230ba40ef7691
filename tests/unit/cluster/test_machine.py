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


@pytest.mark.parametrize("text", ["max\n", "9223372036854771712\n"])
def test_without_a_limit_it_is_the_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str):
    (tmp_path / "limit").write_text(text)
    monkeypatch.setattr(machine, "CGROUP_LIMITS", (str(tmp_path / "limit"),))
    found = machine.memory_bytes()
    assert found is not None
    assert 2**26 < found < 2**50
