"""MLflow's own pages of a finished workflow, as a person finds them: runs below each other, curves, figures, models."""

from __future__ import annotations

import socket
import urllib.parse

import pytest
from playwright.sync_api import Page, expect

from cluster.local.stack import Stack
from pipeline.mlflow_page import CLASSICAL, address
from pipeline.register import register
from pipeline.shown_runs import stage_name
from tests.browser.conftest import OTHER, Shown, see

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]
CURVE = ".js-plotly-plot .scatterlayer path.js-line"
STAGES = [stage_name(stage, "digits") for stage in ("ingest", "pretrain", "finetune", "fewshot", "analyze")]


def opened(page: Page, url: str) -> None:
    """Open a page of MLflow; on a phone without its side bar, which has half of it."""
    page.goto(url)
    toggle = page.get_by_role("button", name="Toggle sidebar")
    toggle.wait_for()
    if page.viewport_size and page.viewport_size["width"] < 600:
        toggle.click()


def test_the_list_has_the_workflow_with_its_figures_and_its_stages_below_it(page: Page, shown: Shown, keep):
    opened(page, address(shown.settings.mlflow))
    row = page.locator("[role=row]", has=page.get_by_role("link", name="digits", exact=True)).first
    row.get_by_role("button").first.click()
    for stage in STAGES:
        see(page.get_by_role("link", name=stage, exact=True))
    trained = page.locator("[role=row]", has=page.get_by_role("link", name=STAGES[1], exact=True)).first
    trained.get_by_role("button").first.click()
    see(page.get_by_role("link", name="pretrain attempt 1", exact=True))
    keep("mlflow-runs")


def test_a_workflow_s_page_says_what_it_is_who_made_it_and_what_came_out(page: Page, shown: Shown, keep):
    opened(page, shown.run_page("workflow"))
    expect(page.get_by_role("heading", name="digits")).to_be_visible()
    see(page.get_by_text("Handwritten digits, from PNG shards"))
    for stage in STAGES:
        see(page.get_by_role("link", name=stage, exact=True))
    see(page.get_by_text("images 1,797"))
    keep("mlflow-workflow")


def test_a_stage_s_curves_are_drawn(page: Page, shown: Shown, keep):
    opened(page, shown.run_page("pretrain", "model-metrics"))
    # Charts are drawn as they come into sight, and their lines before their points.
    page.get_by_placeholder("Search metric charts").fill("train/loss")
    page.wait_for_function(
        "line => [...document.querySelectorAll(line)].some(path => path.getAttribute('d').split(/[LCHV]/).length > 5)",
        arg=CURVE,
    )
    see(page.get_by_text(f"{STAGES[1]} (train/loss)", exact=True))
    keep("mlflow-curves")


def test_how_busy_the_machine_was_is_among_the_system_metrics(page: Page, shown: Shown, keep):
    opened(page, shown.run_page("pretrain", "system-metrics"))
    see(page.get_by_text(f"system/{socket.gethostname()}", exact=False))
    see(page.get_by_text("cpu_utilization_percentage", exact=False))
    page.wait_for_function("() => document.querySelector('.js-plotly-plot .scatterlayer .trace') !== null")
    keep("mlflow-system")


@pytest.mark.parametrize(("name", "said"), [("plan.txt", "plan of digits"), ("workflow.yaml", "held_out_classes")])
def test_a_workflow_s_files_can_be_read_in_the_page(page: Page, shown: Shown, name: str, said: str):
    opened(page, shown.run_page("workflow", f"artifacts/{name}"))
    see(page.get_by_text(said, exact=False))


def test_the_few_shot_figure_is_among_its_stage_s_files(page: Page, shown: Shown, keep):
    opened(page, shown.run_page("fewshot", "artifacts"))
    page.get_by_text("fewshot.png", exact=False).first.click()
    page.wait_for_function("() => [...document.images].some(each => each.naturalWidth > 400)")
    keep("mlflow-fewshot")


def test_the_report_is_among_the_workflow_s_files(page: Page, shown: Shown, keep):
    opened(page, shown.run_page("workflow", "artifacts/report.html"))
    inside = page.frame_locator("iframe").first
    expect(inside.get_by_role("heading", level=1).first).to_contain_text("digits")
    keep("mlflow-report")


def test_the_registered_model_has_its_version_its_figures_and_its_alias(page: Page, shown: Shown, keep):
    opened(page, f"{shown.settings.mlflow}/#/models/digits?{CLASSICAL}")
    see(page.get_by_text("Version 1", exact=False))
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="Version 1"))
    see(row.get_by_text("@ champion"))
    see(row.get_by_text("finetune/test/accuracy"))
    # The list has room for a few short tags.
    assert len(row.inner_text()) < 700
    keep("mlflow-model")


def test_the_printed_address_of_a_version_opens_its_page_among_those_of_models(
    page: Page, shown: Shown, stack_environment: Stack, keep
):
    registered = register(shown.id, shown.settings)
    assert registered.page is not None
    opened(page, registered.page)
    for said in ("finetune/test/accuracy", "patchline.output_digest", "champion", "Inputs (1)", "Outputs (5)"):
        see(page.get_by_text(said, exact=False))
    # The side bar of the pages for language models has no such entry.
    if page.viewport_size and page.viewport_size["width"] > 600:
        expect(page.get_by_role("link", name="Model registry")).to_be_visible()
    # The few-shot figure and the attention.
    page.wait_for_function("() => [...document.images].filter(each => each.naturalWidth > 300).length >= 2")
    keep("mlflow-model-version")


def test_from_an_evaluation_one_comes_to_the_model_that_it_has_read(page: Page, shown: Shown):
    opened(page, shown.run_page("fewshot"))
    page.get_by_role("link", name="digits-pretrain", exact=True).first.click()
    see(page.get_by_role("link", name=STAGES[1], exact=True))
    see(page.get_by_text(shown.settings.root, exact=False))


def test_curves_of_two_workflows_are_in_one_chart_with_their_names(page: Page, shown: Shown, other: Shown, keep):
    """As a person does it: the list's charts, the rows opened, the charts searched."""
    names = [stage_name("pretrain", workflow) for workflow in ("digits", OTHER)]
    chosen = urllib.parse.quote("attributes.run_name LIKE 'pretrain ·%'")
    experiment = shown.runs["workflow"].info.experiment_id
    address = f"{shown.settings.mlflow}/#/experiments/{experiment}/runs?{CLASSICAL}"
    opened(page, f"{address}&compareRunsMode=CHART&searchFilter={chosen}")
    for workflow in ("digits", OTHER):
        row = page.locator("[role=row]", has=page.get_by_role("link", name=workflow, exact=True)).first
        row.get_by_role("button").last.click()
    for name in names:
        see(page.get_by_role("link", name=name, exact=True))
    page.get_by_placeholder("Search metric charts").fill("train/loss")
    page.wait_for_function(
        """line => [...document.querySelectorAll('.js-plotly-plot')].some(chart => {
            // Each line is there twice: as it is, and smoothed.
            const lines = new Set([...chart.querySelectorAll(line)].map(path => path.getAttribute('d')));
            return [...lines].filter(path => path.split(/[LCHV]/).length > 3).length === 2;
        })""",
        arg=".scatterlayer path.js-line",
    )
    for name in names:
        see(page.get_by_text(f"{name} (train/loss)", exact=True))
    keep("mlflow-two-workflows")
