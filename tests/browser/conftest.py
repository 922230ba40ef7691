"""A finished workflow on a stack of its own, and a headless Chromium that looks at its pages.

Screenshots are kept in the folder that SCREENSHOTS names, `build/screenshots` if it names none. Where it does
(`make screenshots`), the workflow is the whole `digits` on the cluster; else one that is as large, trains for less
time, and runs in one process.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Locator, Page, expect, sync_playwright

from cluster.local.stack import Stack
from pipeline.settings import Settings, of_stack
from tests.integration.flows import tracked

WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
SEEN = {"mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true", "mlflow.assistant.panelOpen_v1": "false"}
KEPT = "SCREENSHOTS"
PATIENCE_MS = 180_000
"""How long anything may take to be on a page; for what is expected, too, which has a time of its own."""
OTHER = "digits-lower-rate"
SHORTER = ("pretrain.epochs=8", "finetune.epochs=2", "fewshot.draws=5")
WORKFLOW = Path(__file__).parents[2] / "pipeline/recipes/digits.yaml"
FIGURES = """
  analyze: {data: ingest, from: pretrain, images: 8}
"""


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of Debian's Chromium. Root installs it, or fails; nobody else can, and has the tests skipped."""
    if (found := shutil.which("chromium")) is not None:
        return found
    if os.geteuid() != 0:
        pytest.skip("no Chromium on the path: `apt-get install chromium` as root brings it")
    return installed_chromium()


def installed_chromium() -> str:
    said = "there is no apt-get"
    with (Path(tempfile.gettempdir()) / "patchline-tests-apt.lock").open("w") as lock:
        # The other processes of these tests want the same, and apt-get refuses the second one.
        fcntl.flock(lock, fcntl.LOCK_EX)
        for words in (["update"], ["install", "-y", "chromium"]) if shutil.which("apt-get") else ():
            done = subprocess.run(["apt-get", "-q", *words], check=False, capture_output=True, text=True, timeout=600)
            said = f"apt-get {' '.join(words)}: {(done.stdout + done.stderr)[-500:]}"
    found = shutil.which("chromium")
    if found is None:
        pytest.fail(f"no Chromium, and it cannot be installed: {said}")
    return found


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        # Root has no sandbox, and a container little shared memory.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=chromium, args=options, timeout=PATIENCE_MS)
        yield browser
        browser.close()


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    """A page of a desktop's and of a phone's width, whose own errors are the test's."""
    width, height = WIDTHS[request.param]
    context = browser.new_context(viewport={"width": width, "height": height}, device_scale_factor=2)
    # A new visitor is shown MLflow's assistant, which covers a third of the page.
    for name, value in SEEN.items():
        # Frames that may keep nothing have none of it.
        context.add_init_script(f"try {{ localStorage.setItem({name!r}, {value!r}) }} catch {{ }}")
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    errors = list[Error]()

    def note(error: Error) -> None:
        errors.append(error)

    page.on("pageerror", note)
    yield page
    # What the end of the page cuts off is none of its errors.
    found = list(errors)
    context.close()
    assert found == []


def see(found: Locator) -> None:
    """Scroll to the first of these that is shown: of MLflow's tables a phone has no room for all columns."""
    first = found.filter(visible=True).first
    first.scroll_into_view_if_needed()
    expect(first).to_be_visible()


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A finished workflow, and where MLflow shows it."""

    id: str
    settings: Settings
    runs: dict[str, Any]
    """MLflow's runs by their keys, for example `pretrain/1`."""

    def run_page(self, key: str, tab: str = "") -> str:
        """Address of a run's page."""
        info = self.runs[key].info
        path = f"/#/experiments/{info.experiment_id}/runs/{info.run_id}{f'/{tab}' if tab else ''}"
        return f"{self.settings.mlflow}{path}?workflowType=machine_learning"


@pytest.fixture(scope="session")
def shown(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """The workflow that most tests look at."""
    text = WORKFLOW.read_text() + FIGURES
    return ran(stack, tmp_path_factory.mktemp("browser") / "digits.yaml", text, () if os.environ.get(KEPT) else SHORTER)


@pytest.fixture(scope="session")
def other(stack: Stack, shown: Shown, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """Another one to compare it with, which pretrains with another rate and no more."""
    text = "".join(line for line in WORKFLOW.read_text().splitlines(True) if not line.startswith("register:"))
    overrides = (f"name={OTHER}", "pretrain.lr=0.001", *(() if os.environ.get(KEPT) else SHORTER[:1]))
    path = tmp_path_factory.mktemp("other") / "other.yaml"
    return ran(stack, path, text.partition("  finetune:")[0], overrides)


def ran(stack: Stack, path: Path, text: str, overrides: tuple[str, ...]) -> Shown:
    """A workflow of this text, run to its end in the root of these tests."""
    path.write_text(text)
    settings = of_stack(stack)
    settings = Settings(root=f"{settings.root}/browser", mlflow=settings.mlflow, jobs=settings.jobs)
    words = [word for override in overrides for word in ("-o", override)]
    places = ["--root", settings.root, "--mlflow", settings.mlflow]
    environment = {**os.environ, **stack.environment(), "PATCHLINE_HOME": stack.home}
    # A picture's figures are those of the two workers whose table the README has; a process alone starts sooner.
    way = ["submit", "--follow", "--address", settings.jobs] if os.environ.get(KEPT) else ["run"]
    command = [sys.executable, "-m", "pipeline.cli", *way, str(path), *words, *places]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stack.environment().items():
            patch.setenv(name, value)
        before = set(settings.storage().list_folders("workflows/"))
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1500)
        assert done.returncode == 0, done.stdout + done.stderr
        (workflow_id,) = set(settings.storage().list_folders("workflows/")) - before
        return Shown(id=workflow_id, settings=settings, runs=tracked(settings, workflow_id))


@pytest.fixture
def keep(page: Page, request: pytest.FixtureRequest) -> Any:
    """Keeps a screenshot of the page under a name, with the width where it is a phone's."""
    folder = Path(os.environ.get(KEPT) or "build/screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    suffix = "-phone" if page.viewport_size and page.viewport_size["width"] < 600 else ""

    def keep(name: str, **options: Any) -> Path:
        path = folder / f"{name}{suffix}.png"
        page.screenshot(path=str(path), **options)
        return path

    return keep
