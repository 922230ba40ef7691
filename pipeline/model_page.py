"""What a version of a registered model says of itself on MLflow's page: tags, params, and a text in Markdown."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.lineage import Figure
from pipeline.model_folder import FIGURES, Served
from pipeline.reuse import Finished
from stages.models.config import model_config

CHARACTERS = 5000
"""Of a description; MLflow takes no longer one."""
MOST_FIGURES, MOST_ROWS, MOST_SHOWN, MOST_PICTURES = 40, 8, 3, 6
FIRST = ("test/accuracy", "all/", "validation/accuracy")
"""Beginnings of the figures that come first, after the champion's."""
PICTURES_FIRST = ("fewshot.png", "rollout.png", "attention_distance.png")
FIGURES_TAG = "patchline.figures"
"""The tag of a version in which earlier versions of this program had what `mlflow_models.FIGURES` has now."""


def chosen(figures: Iterable[Figure], stage: str, metric: str | None) -> list[Figure]:
    """The figures that a version carries, the most telling ones first: the champion's, then the stage's own."""

    def rank(figure: Figure) -> tuple[bool, int, bool, int]:
        named = figure.name.partition("/")[2]
        kind = next((i for i, first in enumerate(FIRST) if named.startswith(first)), len(FIRST))
        shots = re.search(r"/(\d+)_shot", named)
        return figure.name != metric, kind, figure.stage != stage, int(shots[1]) if shots is not None else 0

    return sorted(figures, key=rank)[:MOST_FIGURES]


def figure_tags(figures: Sequence[Figure], known: Mapping[str, str]) -> dict[str, str]:
    """Tags that a version with these tags is to be given: the first figures, for people. What it has stays as it is."""
    # The list of versions shows them in this order.
    return {figure.name: f"{figure.value:.6g}" for figure in figures[:MOST_SHOWN] if figure.name not in known}


def all_figures(figures: Sequence[Figure], *known: str) -> str:
    """These figures as JSON, and those of such texts, which go before them."""
    own = {figure.name: {"value": figure.value, "data": figure.data} for figure in figures}
    for text in known:
        own |= _read(text)
    return json.dumps(own, sort_keys=True)


def measured(metric: str, *known: str) -> tuple[float | None, str | None]:
    """A figure of such texts, the first one that has it, and the digest of the data set that it was measured on."""
    for text in known:
        try:
            found = _read(text)[metric]
            return float(found["value"]), str(found["data"])
        except (ValueError, TypeError, KeyError):
            continue
    return None, None


def _read(text: str) -> dict[str, Any]:
    """Somebody's own tag of such a name says nothing."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def origin(workflow_id: str, root: str, stage: str, done: Finished, commit: str | None) -> dict[str, str]:
    """Where a model comes from. A version has the workflow and the stage of it, its logged model all."""
    output = done.output
    return {
        "patchline.workflow": workflow_id,
        "patchline.stage": stage,
        "patchline.root": root,
        "patchline.output": f"{root}/{output.prefix}",
        "patchline.trained_on": str(output.meta.get("trained_on", "unknown")),
        "patchline.code": str(done.record.builds.get("code", "unknown")),
        "patchline.version": str(done.record.builds.get("patchline", "unknown")),
        **({"patchline.git_commit": commit} if commit else {}),
    }


def params(served: Served) -> dict[str, str]:
    """What the network is."""
    meta = served.output.meta
    resized = " ".join(str(value) for value in served.evaluation.values() if value is not None)
    return {
        "network": model_config(meta["model"]).title,
        "resolution": str(meta["resolution"]),
        "classes": str(meta["num_classes"]),
        "evaluation": resized,
        "images_seen": str(meta.get("images_seen", "unknown")),
        "weights": "averaged" if meta.get("averaged") else "last",
    }


def description(
    *,
    address: str,
    model_id: str,
    about: Mapping[str, str],
    source: Mapping[str, str],
    figures: Sequence[Figure],
    classes: Sequence[str],
    pictures: Iterable[str],
) -> str:
    """The page's text: what it is, how good, how to use it, its pictures."""
    named = ", ".join(classes[:12]) + (", …" if len(classes) > 12 else "")
    head = (
        f"{about['network']} at {about['resolution']} × {about['resolution']} pixels, {int(about['classes']):,} "
        f"classes ({named}). Stage `{source['patchline.stage']}` of workflow `{source['patchline.workflow']}`."
    )
    rows = [f"| {figure.name} | {_shown(figure)} |" for figure in figures[:MOST_ROWS]]
    table = ["| figure | value |", "|---|---|", *rows] if rows else []
    usage = [
        "`encoded` is a JPEG, PNG or the like as bytes, over HTTP its base64; any number of images, of any size:",
        "```",
        f'model = mlflow.pyfunc.load_model("{address}")',
        'model.predict(pandas.DataFrame({"image": [encoded]}))',
        f"$ mlflow models serve -m {shlex.quote(address)} --env-manager local",
        "```",
    ]
    place = f"ajax-api/2.0/mlflow/logged-models/{model_id}/artifacts/files?artifact_file_path={FIGURES}/"
    images = [f"![{name}]({place}{name})" for name in sorted(pictures, key=_place)[:MOST_PICTURES]]
    text = ""
    for block in (head, "\n".join(table), "\n".join(usage), *images):
        # What does not fit is left out whole.
        if block and len(text) + len(block) + 2 <= CHARACTERS:
            text += f"{block}\n\n"
    return text.strip()


def _place(picture: str) -> int:
    """Those that say most come first: not all of them have room."""
    return next((place for place, name in enumerate(PICTURES_FIRST) if picture.endswith(name)), len(PICTURES_FIRST))


def _shown(figure: Figure) -> str:
    likeness = figure.name.endswith(("accuracy", "_top5", "_shot"))
    return f"{figure.value:.2%}" if likeness else f"{figure.value:.4g}"
