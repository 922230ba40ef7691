"""docs/scale.md says what the formulas and simulations say of what was measured."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands.base import console
from pipeline.estimate_failures import RESTART_SECONDS, restart_seconds, restore_requests, restore_seconds
from stages.training.config import usable_ranks
from tests.bench.scale_cases import DATA, MACHINE_MTBF_HOURS, MEASURED, PER_TAR
from tests.bench.scale_tables import TABLES, filled

PAGE = (Path(__file__).parents[2] / "docs/scale.md").read_text()


def test_all_tables_are_there_once():
    assert sorted(re.findall(r"<!-- table: (\w+) -->", PAGE)) == sorted(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_what_its_formulas_and_simulations_give(name: str):
    (found,) = re.findall(rf"<!-- table: {name} -->\n((?:\|.*\n)*)", PAGE)
    assert found == TABLES[name]()


def test_a_page_is_filled_again_with_the_same():
    one = "a\n\n<!-- table: speeds -->\n| old |\n\nb\n"
    assert filled(one) == filled(filled(one)) == f"a\n\n<!-- table: speeds -->\n{TABLES['speeds']()}\nb\n"


def test_what_the_text_says_is_what_was_measured_and_assumed():
    words = " ".join(PAGE.split())
    requests = sum((*MEASURED["fetch_tar"].values(), *MEASURED["fetch_index"].values()))
    assert f"a tar and its index are {requests} requests" in words
    assert f"once in {MACHINE_MTBF_HOURS:,.0f} hours" in words
    assert f"is {RESTART_SECONDS:.0f} s (assumed" in words
    assert usable_ranks(4096, 1016) == usable_ranks(16_384, 1016) == 512
    assert MEASURED["curves_11"] == MEASURED["curves_1"], "whatever the number of attempts"
    assert f"that took {MEASURED['list_seconds_20000']:.2f} s each time" in words
    assert MEASURED["add_seconds_20000"] < 1e-3
    assert f"{80.6 * DATA['10^10'] / PER_TAR / 1e6:.0f} MB in each rank" in words


def test_a_restart_asks_for_what_was_measured_and_no_faster_than_a_prefix_answers():
    for ranks in (8, 64):
        assert sum(MEASURED[f"restore_{ranks}"].values()) == restore_requests(ranks)
    # 3,073 requests of each of 128 machines, eight under way, each of a tenth of a second: they would ask for 10,240 a
    # second, and 5,500 are answered.
    assert restore_seconds(3073, 128) == pytest.approx(3073 * 128 / 5500)
    assert restore_seconds(193, 8) == pytest.approx(193 * 0.1 / 8)
    assert restart_seconds(1024, 128) == pytest.approx(120 + 71.5, rel=0.001)


def test_the_plan_is_as_the_page_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(console, "width", 160)
    (block,) = re.findall(r"```console\n\$ (.*?)```", PAGE, re.DOTALL)
    command, _, told = block.replace("\\\n", " ").partition("…\n")
    answer = CliRunner().invoke(app, [*shlex.split(command)[1:], "--root", f"file://{tmp_path}"], terminal_width=200)
    assert answer.exit_code == 0, answer.output
    assert told.strip() in answer.output


def test_the_example_in_python_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code.replace("file:///data/results", f"file://{tmp_path}"), {})
    assert re.fullmatch(r"0\.3\d% lost, 0\.3\d% with save_every=\d+\n", capsys.readouterr().out)
