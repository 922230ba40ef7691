"""The pages docs/stages/<kind>.md and docs/metrics.md, made of the configs' own fields and docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from pipeline.config import BESIDE, MADE
from pipeline.field_words import default_words, models_in, type_words
from pipeline.identity import role, rounding_fields, wanted_outputs
from pipeline.kinds import KINDS
from pipeline.metric_names import CURVES, FIGURES, Metric, of_kind
from pipeline.stage_examples import FILES, example
from stages.config import StageConfig

MADE_BY = "<!-- Made by `patchline schema --markdown docs` of the configs' fields: change it there. -->"
ROLES = """
Fields are of three roles. What determines the result is part of the stage's *identity*. *Placement* says where and how
wide it runs, and changes nothing of the result (*placement, rounding*: the order of sums alone, so the last bits). A
*reference* names another stage of the workflow, whose output is read.
""".strip()

METRICS = """
They are the same for every workflow, in MLflow, in the report and in the records in storage, so that curves of several
workflows can be laid over each other. *Part of 1* is a share: 0.5 is 50 %. What stands in angle brackets differs.
[mlflow.md](mlflow.md) says which run has what.
""".strip()


def pages() -> dict[str, str]:
    """All pages, by their paths below docs."""
    found = {f"stages/{kind}.md": stage_page(config) for kind, config in KINDS.items()}
    return {**found, "stages/README.md": _index(), "metrics.md": metrics_page()}


def stage_page(config: type[StageConfig]) -> str:
    """What a kind of stage is for, its fields, its output and its metrics, with an example. In Markdown."""
    text, recipe = example(config.kind)
    source = f", from the recipe `{recipe}`" if recipe else ""
    blocks = [
        MADE_BY,
        f"# The stage `{config.kind}`",
        _paragraphs(config),
        f"An example{source}:",
        f"```yaml\nstages:\n{_indented(text)}\n```",
        f"In Python it is `{config.__module__}.{config.__name__}`. It makes {_article(config.output)} (version "
        f"{config.version} of its identity).",
        "## Fields",
        ROLES,
        _fields(config),
        *_nested(config),
        "## In the workflow file, beside its fields",
        "[workflows.md](../workflows.md) tells of these.",
        _table(("key", "what it says"), ((f"`{key}`", _cell(text)) for key, text in _beside(config))),
        "## What it makes",
        *_output(config),
        "## Metrics",
        *_metrics(config.kind),
    ]
    return "\n\n".join(blocks) + "\n"


def metrics_page() -> str:
    """All metrics with their units, and the stages that have them. In Markdown."""
    curves = "Curves: points with the update as step, at the stage and at each attempt."
    figures = (
        "Figures: one value, of a stage that is done. The main ones are at the workflow's run too, as `<stage>/<name>`."
    )
    blocks = [
        MADE_BY,
        "# Metrics: names and units",
        METRICS,
        "## Curves",
        curves,
        _metric_table(CURVES, with_kinds=True),
        "## Figures",
        figures,
        _metric_table(FIGURES, with_kinds=True),
    ]
    return "\n\n".join(blocks) + "\n"


def _index() -> str:
    rows = [(f"[`{kind}`]({kind}.md)", _first(config), _article(config.output)) for kind, config in KINDS.items()]
    intro = "A page for each kind of stage that ships. [workflows.md](../workflows.md) says how they are put together."
    return "\n\n".join([MADE_BY, "# Stages", intro, _table(("kind", "what it does", "makes"), rows)]) + "\n"


def _paragraphs(model: type[BaseModel]) -> str:
    return inspect.cleandoc(model.__doc__ or "")


def _first(model: type[BaseModel]) -> str:
    return _cell(_paragraphs(model).partition("\n\n")[0].replace("\n", " "))


def _fields(model: type[BaseModel]) -> str:
    schema = _object(model)
    required = schema.get("required", ())
    rows = []
    for field in ordered(model):
        key = model.model_fields[field].alias or field
        own = schema["properties"][key]
        default = "required" if key in required else default_words(own, model.model_fields[field])
        # A field that tells kinds apart needs no words: its type is its one value.
        told = own.get("description") or ("of this kind" if "const" in own else "")
        rows.append((f"`{key}`", type_words(own), default, _role(model, field), _cell(told)))
    return _table(("field", "type", "default", "role", "description"), rows)


def ordered(model: type[BaseModel]) -> list[str]:
    """Its fields: those of its own class first, then those that it has in common with others."""
    found: dict[str, None] = {}
    for owner in model.__mro__:
        found |= dict.fromkeys(name for name in inspect.get_annotations(owner) if name in model.model_fields)
    return list(found)


def _object(model: type[BaseModel]) -> Mapping[str, Any]:
    """The JSON schema of the fields, of models that may be given by name too."""
    schema = model.model_json_schema(by_alias=True)
    if "$ref" in schema:
        schema = schema["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    return next((one for one in schema.get("anyOf", ()) if "properties" in one), schema)


def _role(model: type[BaseModel], field: str) -> str:
    own = role(model, field)
    if own == "reference":
        return f"reference: {' or '.join(wanted_outputs(model, field))}"
    return f"{own}, rounding" if field in rounding_fields(model) else own


def _nested(config: type[StageConfig]) -> Iterator[str]:
    """A heading, a docstring and a table for each config within the config, outermost first."""
    waiting, seen = list(models_in(config)), set[type[BaseModel]]()
    while waiting:
        path, model = waiting.pop(0)
        if model in seen:
            continue
        seen.add(model)
        waiting += [(f"{path}.{field}", inner) for field, inner in models_in(model)]
        yield f"### {model.__name__}"
        yield f"Of `{path}`. {_paragraphs(model)}"
        yield _fields(model)


def _beside(config: type[StageConfig]) -> Iterator[tuple[str, str]]:
    for key, schema in BESIDE.items():
        if config.output in MADE.get(key, (config.output,)) and (key != "branch" or config.kind == "pretrain"):
            yield key, schema["description"]


def _output(config: type[StageConfig]) -> Iterator[str]:
    made = _article(config.output).capitalize()
    yield f"{made}: `MANIFEST.json`, which says what it is and has the digests of all files."
    if FILES[config.kind]:
        yield _table(("file", "what it has"), ((f"`{name}`", _cell(text)) for name, text in FILES[config.kind].items()))


def _metrics(kind: str) -> Iterator[str]:
    yield "[metrics.md](../metrics.md) has those of all stages."
    for title, metrics in (("Figures, when it is done:", FIGURES), ("Curves:", CURVES)):
        if own := of_kind(metrics, kind):
            yield title
            yield _metric_table(own, with_kinds=False)


def _metric_table(metrics: Iterable[Metric], *, with_kinds: bool) -> str:
    heads = ("name", "unit", "what it is", "only", *(("stages",) if with_kinds else ()))
    return _table(
        heads,
        (
            (
                *(f"`{own.name}`", own.unit, _cell(own.meaning), _cell(own.only)),
                *((", ".join(own.kinds),) if with_kinds else ()),
            )
            for own in metrics
        ),
    )


def _article(output: str) -> str:
    if output in ("features", "figures"):
        return output
    return f"{'an' if output[0] in 'aeiou' else 'a'} {output}"


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _cell(text: str) -> str:
    """Text that may have bars in it, for a table."""
    return text.replace("|", "\\|")


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)
