"""The pages about stages say what the configs say, of every field; links in all pages lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from pydantic import BaseModel

from pipeline.config import load_workflow, parse_workflow
from pipeline.field_words import models_in
from pipeline.kinds import KINDS
from pipeline.stage_examples import FILES, OWN, SHIPPED, example
from pipeline.stage_pages import ordered, pages

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
AROUND = """
name: around
stages:
  ingest: {source: {kind: digits}}
  upstream: {kind: ingest, source: {kind: digits}, seed: 1}
  pretrain: {data: ingest, model: Ti/8, resolution: 16, updates: 9}
  narrow: {kind: pretrain, data: ingest, model: Ti/8, resolution: 16, updates: 9}
  wide: {kind: pretrain, data: ingest, model: S/8, resolution: 16, updates: 9}
  finetune: {data: ingest, from: pretrain, resolution: 16, updates: 9}
"""
"""What the examples of kinds that no recipe has refer to."""


def test_the_pages_are_those_that_the_configs_make():
    made = pages()
    there = {path.relative_to(DOCS).as_posix() for path in (*DOCS.glob("stages/*"), DOCS / "metrics.md")}
    assert there == set(made)
    for path, text in made.items():
        assert (DOCS / path).read_text() == text, f"docs/{path} is old: patchline schema --markdown docs"


def all_models() -> Iterator[type[BaseModel]]:
    waiting: list[type[BaseModel]] = list(KINDS.values())
    while waiting:
        model = waiting.pop()
        yield model
        waiting += [inner for _, inner in models_in(model)]


def test_every_field_is_described_and_stands_in_its_table():
    made = "\n".join(pages().values())
    for model in set(all_models()):
        assert model.__doc__, model
        assert set(ordered(model)) == set(model.model_fields)
        for field, info in model.model_fields.items():
            assert info.description or field == "kind", f"{model.__name__}.{field}"
            assert re.search(rf"^\| `{info.alias or field}` \| [^|]+ \| [^|]+ \| [^|]+ \| [^|]+", made, re.MULTILINE)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_an_example_that_is_one(kind: str):
    text, recipe = example(kind)
    assert (kind in SHIPPED) != (kind in OWN)
    assert kind in FILES
    if recipe:
        name, workflow = SHIPPED[kind][1], load_workflow(recipe)
        assert text.startswith(f"{name}:")
        own = [config for stage, config in workflow.stages.items() if stage == name or stage.startswith(f"{name}-")]
    else:
        own = [parse_workflow(f"{AROUND}  {text}", kind).stages[text.partition(":")[0]]]
    assert {config.kind for config in own} == {kind}


def headings(path: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    return {
        re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }


@pytest.mark.parametrize("page", [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.name)
def test_every_link_within_the_repository_leads_somewhere(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = unquote(target).partition("#")
        found = (page.parent / path) if path else page
        assert found.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in headings(found), f"{page.name}: {target}"


def test_the_index_has_a_line_for_each_page():
    listed = re.findall(r"^\| \[[^\]]+\]\(([^)]+)\)", (DOCS / "README.md").read_text(), re.MULTILINE)
    pages_there = {path.name for path in DOCS.glob("*.md")} - {"README.md"}
    assert sorted(listed) == sorted({*pages_there, "stages/README.md"})
