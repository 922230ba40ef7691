"""The report of a finished workflow as a browser shows it: offline, on a desktop and on a phone, light and dark."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from cluster.local.stack import Stack
from tests.browser.conftest import OTHER, Shown, see
from tests.integration.flows import curve

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def report(stack: Stack, shown: Shown, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report, as the command writes it."""
    return written(stack, shown, tmp_path_factory.mktemp("report") / "report.html", shown.id)


@pytest.fixture(scope="module")
def compared(stack: Stack, shown: Shown, other: Shown, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two workflows side by side, as the command writes them."""
    path = tmp_path_factory.mktemp("compared") / "compared.html"
    return written(stack, shown, path, "--compare", shown.id, other.id)


def written(stack: Stack, shown: Shown, path: Path, *which: str) -> Path:
    words = ["report", *which, "--root", shown.settings.root, "--to", str(path)]
    environment = {**os.environ, **stack.environment(), "PATCHLINE_HOME": stack.home}
    command = [sys.executable, "-m", "pipeline.cli", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return path


def unfolded(page: Page, path: Path) -> list[str]:
    """Open a page with all that is folded; returns what it will have asked for."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    return asked


def check_whole(page: Page, asked: list[str]) -> None:
    """Nothing is wider than the screen, every picture is there, and nothing came from outside."""
    assert page.viewport_size is not None
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    broken = page.evaluate("[...document.images].filter(each => !each.naturalWidth).map(each => each.alt)")
    assert broken == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def drawn(page: Page, stage: str, title: str) -> list[dict[str, Any]]:
    """The lines of a chart: what the legend calls each, its points, and its size in pixels."""
    section = page.locator("section.stage", has=page.get_by_role("heading", name=re.compile(f"^{stage}")))
    chart = section.locator("figure.chart", has=page.locator("figcaption", has_text=re.compile(f"^{title}"))).first
    return chart.evaluate(
        """chart => [...chart.querySelectorAll('svg path:not(.band):not(.dots)')].map(path => {
            const box = path.getBoundingClientRect();
            return {look: path.getAttribute('class'), points: path.getAttribute('d').split('L').length,
                    width: box.width, height: box.height, color: getComputedStyle(path).stroke,
                    label: [...chart.querySelectorAll('.legend span')].map(each => each.textContent)};
        })"""
    )


def points_of(shown: Shown, metric: str) -> int:
    return len(curve(shown.settings, shown.runs["pretrain"], metric))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_whole_and_fits(page: Page, report: Path, keep, scheme):
    page.emulate_media(color_scheme=scheme)
    asked = unfolded(page, report)
    expect(page.get_by_role("heading", level=1).first).to_contain_text("digits")
    for stage in ("ingest", "pretrain", "finetune", "fewshot", "analyze"):
        see(page.get_by_text(stage, exact=True))
    check_whole(page, asked)
    assert page.evaluate("document.images.length") >= 2
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = false)")
    keep(f"report-{scheme}")


def test_the_curves_are_drawn_and_the_figures_are_the_records(page: Page, report: Path, shown: Shown):
    unfolded(page, report)
    for stage in ("pretrain", "finetune"):
        for title, metrics in {"Loss": 2, "Accuracy": 2, "Learning rate": 1, "Gradient norm": 1}.items():
            lines = drawn(page, stage, title)
            # A split that was evaluated at the end alone is a point.
            assert 1 <= len(lines) <= metrics, (stage, title)
            assert lines[0]["width"] > 100, "the line goes across the chart"
            assert lines[0]["height"] > 10, "and is not flat"
    losses = drawn(page, "pretrain", "Loss")
    assert losses[0]["points"] == points_of(shown, "train/loss") >= 4
    accuracy = shown.runs["pretrain"].data.metrics["test/accuracy"]
    assert f"{100 * accuracy:.1f}" in page.locator("body").inner_text()


def test_two_workflows_are_side_by_side(page: Page, compared: Path, shown: Shown, other: Shown, keep):
    asked = unfolded(page, compared)
    expect(page.get_by_role("heading", level=1).first).to_have_text(f"digits and {OTHER}")
    for workflow in (shown, other):
        expect(page.get_by_text(workflow.id, exact=True).first).to_be_visible()
    check_whole(page, asked)
    settings = page.locator("#settings").inner_text()
    assert re.search(r"pretrain\.lr\s+0\.003\s+0\.001", settings)
    assert "finetune" in settings, "which one of them has alone"
    # Both in one chart, told apart by colour and legend.
    lines = [line for line in drawn(page, "pretrain", "Loss") if "dashed" not in line["look"]]
    assert [line["points"] for line in lines] == [points_of(each, "train/loss") for each in (shown, other)]
    assert len({line["color"] for line in lines}) == 2
    assert min(line["width"] for line in lines) > 100
    assert {"A training", "B training"} <= set(lines[0]["label"])
    for each in (shown, other):
        assert f"{100 * each.runs['pretrain'].data.metrics['test/accuracy']:.1f}" in page.locator("body").inner_text()
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = false)")
    keep("report-compared")
    page.locator("section.stage", has=page.locator("svg")).first.scroll_into_view_if_needed()
    keep("report-compared-curves")
