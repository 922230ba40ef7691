"""The report of a finished workflow as a browser shows it: offline, on a desktop and on a phone, light and dark."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from cluster.local.stack import Stack
from tests.browser.conftest import Shown

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def report(stack: Stack, shown: Shown, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report, as the command writes it."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    words = ["report", shown.id, "--root", shown.settings.root, "--to", str(path)]
    environment = {**os.environ, **stack.environment(), "PATCHLINE_HOME": stack.home}
    command = [sys.executable, "-m", "pipeline.cli", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_whole_and_fits(page: Page, report: Path, keep, scheme):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.emulate_media(color_scheme=scheme)
    page.goto(report.as_uri())
    expect(page.get_by_role("heading", level=1).first).to_contain_text("digits")
    for stage in ("ingest", "pretrain", "finetune", "fewshot", "analyze"):
        expect(page.get_by_text(stage, exact=True).first).to_be_attached()
    # Whatever is folded has to fit too.
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    broken = page.evaluate("[...document.images].filter(each => !each.naturalWidth).map(each => each.alt)")
    assert broken == []
    assert page.evaluate("document.images.length") >= 2
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = false)")
    keep(f"report-{scheme}")


def test_the_curves_are_drawn_and_the_figures_are_the_records(page: Page, report: Path, shown: Shown):
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    lines = page.locator("svg polyline, svg path")
    assert lines.count() >= 3
    accuracy = shown.runs["pretrain"].data.metrics["test/accuracy"]
    assert f"{100 * accuracy:.1f}" in page.locator("body").inner_text()
