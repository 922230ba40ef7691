"""What the comparison of loaders takes for a figure, and what it refuses before it measures anything."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.bench import loader
from tests.bench.loader_peers import LOADERS

RATES = {
    "patchline": 3500.0, "webdataset_pil": 900.0, "webdataset_turbo": 1600.0, "decode_limit": 1900.0,
    "ray_data": 400.0, "litdata": 950.0, "mosaicml_streaming": 900.0, "s3_local": 4054.0, "s3_first_epoch": 3400.0,
    "s3_cached": 3852.0,
}  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(loader.LEAST):
        path = tmp_path / "photos" / f"class-{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "photos"


def test_every_side_can_be_asked_for_alone(photos: Path):
    assert {*loader.OURS, *LOADERS} == {*loader.OURS, *loader.NEEDED} == set(RATES)
    assert loader.parsed([str(photos), "--only", ",".join(RATES)]).only == list(RATES)
    assert loader.parsed([str(photos)]).only == []


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The line that it ends with."""
    with pytest.raises(SystemExit) as ended:
        loader.parsed(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_name_that_is_none_is_refused(photos: Path, capsys: pytest.CaptureFixture[str]):
    said = refused(capsys, str(photos), "--only", "patchline,typo")
    assert "--only typo: no such side; there are patchline, s3_local," in said


def test_a_folder_without_enough_photos_is_refused(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert f"{tmp_path}/none: no such folder: give one with" in refused(capsys, str(tmp_path / "none"))
    assert f"{tmp_path}: 0 photos: give one with" in refused(capsys, str(tmp_path))
    (photos / "class-0" / "0.jpg").unlink()
    assert "63 photos: give one with a folder of .jpg files for each class, 64 in all" in refused(capsys, str(photos))


def test_figures_are_held_against_their_limits_before_they_are_rounded():
    found = loader.compared(RATES)
    assert set(loader.LIMITS) < set(found)
    assert loader.missed(found) == []
    almost = loader.compared(RATES | {"s3_cached": 3851.0})
    assert round(almost["s3_cached"], 2) == loader.LIMITS["s3_cached"]
    assert loader.missed(almost) == ["missed: s3_cached 0.9499, at least 0.95"]


def test_the_best_peer_is_known_where_all_were_measured():
    assert loader.compared(RATES)["vs_best_peer"] == 3500 / 1600
    without = {name: rate for name, rate in RATES.items() if name != "litdata"}
    assert "vs_best_peer" not in loader.compared(without)
    assert set(loader.compared({"patchline": 3500.0})) == {"images_per_s"}
    assert set(loader.compared({"ray_data": 400.0, "s3_cached": 1.0})) == {"images_per_s"}


def test_what_is_not_installed_leaves_limits_without_a_figure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("cv2", "litdata") else object())
    absent = loader.not_installed([])
    assert absent == {"webdataset_turbo": "cv2", "decode_limit": "cv2", "litdata": "litdata"}
    assert loader.without_figure(absent) == [
        "no figure for vs_best_peer, vs_decode_limit: webdataset_turbo needs cv2, decode_limit needs cv2, "
        "litdata needs litdata"
    ]
    assert loader.without_figure(loader.not_installed(["litdata"])) == [
        "no figure for vs_best_peer: litdata needs litdata"
    ]
    assert loader.without_figure(loader.not_installed(["patchline", "webdataset_pil"])) == []
