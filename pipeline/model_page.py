"""What a version of a registered model says of itself on MLflow's page: tags, params, and a text in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pipeline.lineage import Figure
from pipeline.model_folder import FIGURES, Served
from pipeline.reuse import Finished
from stages.models.config import model_config

CHARACTERS = 5000
"""Of a description; MLflow takes no longer one."""
MOST_FIGURES, MOST_PICTURES = 40, 6
FIRST = ("test/accuracy", "validation/accuracy", "all/")
"""Beginnings of the figures that come first, after the champion's."""
DATA = "patchline.data_digest."
"""Before a stage's name: the tag with the digest of the data set that its figures were measured on."""


def chosen(figures: Iterable[Figure], metric: str | None) -> list[Figure]:
    """The figures that a version carries, the most telling ones first."""

    def rank(figure: Figure) -> tuple[bool, int]:
        named = figure.name.partition("/")[2]
        return figure.name != metric, next((i for i, first in enumerate(FIRST) if named.startswith(first)), len(FIRST))

    return sorted(figures, key=rank)[:MOST_FIGURES]


def figure_tags(figures: Iterable[Figure], known: Mapping[str, str]) -> dict[str, str]:
    """Tags of the figures that a version with these tags does not have yet.

    Of a stage that was measured on another data set by then, none: the two would be taken for one.
    """
    found: dict[str, str] = {}
    for figure in figures:
        data = f"{DATA}{figure.stage}"
        if known.get(data, figure.data) == figure.data and figure.name not in known:
            found |= {data: figure.data, figure.name: f"{figure.value:.6g}"}
    return {key: value for key, value in found.items() if key not in known}


def tags(workflow_id: str, root: str, stage: str, done: Finished, commit: str | None) -> dict[str, str]:
    """Where a version comes from."""
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
    origin: Mapping[str, str],
    figures: Sequence[Figure],
    classes: Sequence[str],
    pictures: Iterable[str],
) -> str:
    """The page's text: what it is, how good, how to use it, its pictures."""
    named = ", ".join(classes[:12]) + (", …" if len(classes) > 12 else "")
    # A comma of thousands would end nothing here: Markdown takes it as it is.
    head = (
        f"**{about['network']}** at {about['resolution']} × {about['resolution']} pixels, {int(about['classes']):,} "
        f"classes ({named}). Stage `{origin['patchline.stage']}` of workflow `{origin['patchline.workflow']}`."
    )
    rows = [f"| {figure.name} | {_shown(figure)} |" for figure in figures[:12]]
    table = ["| figure | |", "|---|---|", *rows] if rows else []
    usage = [
        "```",
        f'mlflow.pyfunc.load_model("{address}").predict(pandas.DataFrame({{"image": [encoded]}}))',
        f"mlflow models serve -m {address} --env-manager local",
        "```",
        "`encoded` is a JPEG, PNG or the like as bytes, over HTTP its base64. Any number of images, of any size.",
    ]
    place = f"ajax-api/2.0/mlflow/logged-models/{model_id}/artifacts/files?artifact_file_path={FIGURES}/"
    images = [f"![{name}]({place}{name})" for name in list(pictures)[:MOST_PICTURES]]
    text = ""
    for block in (head, "\n".join(table), "\n".join(usage), *images):
        # What does not fit is left out whole.
        if block and len(text) + len(block) + 2 <= CHARACTERS:
            text += f"{block}\n\n"
    return text.strip()


def _shown(figure: Figure) -> str:
    likeness = figure.name.endswith(("accuracy", "_top5", "_shot"))
    return f"{figure.value:.2%}" if likeness else f"{figure.value:.4g}"
