"""The examples in docs/data.md run as they stand there."""

import re
from pathlib import Path

from tests.unit.stages.ingest.pictures import NAMES, digit, jpeg

DATA = Path(__file__).parents[2] / "docs" / "data.md"
TRAINED = """
name: photos
stages:
  ingest: {name: photos, source: {kind: folder, path: photos}, longest_side: 256, test_fraction: 0.2}
  pretrain: {data: ingest, model: Ti/16, resolution: 32, updates: 10, warmup_updates: 2, global_batch: 32}
"""
"""What the page's photos are for."""


def test_the_examples_of_the_page_on_data_run(tmp_path, monkeypatch, capsys):
    for number in range(100):
        path = tmp_path / "photos" / NAMES[digit(number)] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATCHLINE_HOME", str(tmp_path / "home"))
    blocks = re.findall(r"```python\n(.*?)```", DATA.read_text(), re.DOTALL)
    assert len(blocks) == 3
    (tmp_path / "photos.yaml").write_text(TRAINED)
    code = "\n".join(blocks).replace("file:///data/results", f"file://{tmp_path}/results")
    exec(code, {})
    told = capsys.readouterr().out
    assert re.search(r"^\d+ images in 1 tars, of 10 classes$", told, re.MULTILINE)
    assert re.search(r"^\d+\.\d+ (decoding|storage|hand-over) (True|False) \[.*\]$", told, re.MULTILINE)
    assert "000000000128 (24, 24) " in told
