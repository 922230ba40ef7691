"""Every documented example, as far as it goes without a server: options, workflow, places."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from pipeline import api, cli
from pipeline.config import Workflow, load_workflow
from pipeline.settings import Settings, check_reachable, resolve

REPOSITORY = Path(__file__).parents[3]
COMMAND: Any = typer.main.get_command(cli.app)


def of_help() -> Iterator[str]:
    for command in COMMAND.commands.values():
        yield from re.findall(r"Example: `(.+?)`", command.help or "")


def of_pages() -> Iterator[str]:
    """The commands on lines that begin with $, which may hold several."""
    for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))):
        # A line that ends in a backslash goes on with the next one.
        text = re.sub(r"\\\n\s*", "", path.read_text())
        for line in re.findall(r"^\$ (patchline .*)$", text, re.MULTILINE):
            parts = [part.strip() for part in re.sub(r" {2,}#.*", "", line).split(";")]
            yield from (part for part in parts if part.startswith("patchline "))


def block(language: str, words: str, page: str = "README.md") -> str:
    """The block of code of a page that has these words."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (REPOSITORY / page).read_text(), re.DOTALL)
    (found,) = [text for text in blocks if words in text]
    return found


@pytest.fixture(autouse=True)
def newcomer(tmp_path, monkeypatch):
    """In a folder with the pages' workflow files, where nothing has ever been started."""
    monkeypatch.setenv("PATCHLINE_HOME", str(tmp_path / "home"))
    for name in ("mine", "jft"):
        (tmp_path / f"{name}.yaml").write_text(block("yaml", f"name: {name}"))
    (tmp_path / "vit-l16.yaml").write_text(block("yaml", "name: vit-l16", "docs/operations.md"))
    # As the page makes it, of the same file's first lines.
    first = (tmp_path / "vit-l16.yaml").read_text().splitlines(keepends=True)[:3]
    (tmp_path / "images.yaml").write_text("".join(first))
    # The page on data speaks of a workflow on photos without showing it.
    (tmp_path / "photos.yaml").write_text(block("yaml", "name: mine").replace("name: mine", "name: photos"))
    monkeypatch.chdir(tmp_path)


def test_every_command_has_an_example():
    assert len(list(of_help())) == len(COMMAND.commands)


@pytest.mark.parametrize("example", sorted({*of_help(), *of_pages()}))
def test_an_example_is_understood(example: str):
    program, name, *words = shlex.split(example.partition(" > ")[0])
    assert program == "patchline"
    found = COMMAND.commands[name].make_context(name, words).params
    if found.get("workflow"):
        load_workflow(found["workflow"], found["override"] or [])
    places = {place: found[place] for place in ("root", "mlflow", "address") if found.get(place)}
    check_reachable(resolve(**places))


def test_the_example_in_python_is_understood(monkeypatch):
    submitted: list[Any] = []

    def submit(workflow: Workflow, settings: Settings) -> str:
        submitted.append((workflow, settings))
        return "digits-20260131-101500-1a2b"

    monkeypatch.setattr(api, "submit", submit)
    exec(block("python", "resolve("), {})
    ((workflow, settings),) = submitted
    check_reachable(settings)
    assert workflow.stages["pretrain"].epochs == 3
    assert (settings.root, settings.jobs) == ("s3://bucket/vit", "http://head:8265")
