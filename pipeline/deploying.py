"""Reading a cluster's shape file, and making of it what Kubernetes, Ray's launcher and AWS are given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import yaml
from pydantic import ValidationError

from cluster.deploy.rendering import Part, example, job, render, write
from cluster.deploy.shape import Shape
from cluster.errors import UserError
from pipeline.config import Workflow
from pipeline.explain import explain
from pipeline.yaml_file import read_yaml, unreadable


def load_shape(path: Path) -> Shape:
    """Read a shape file. Raises UserError with the path of the field, the value and what was expected."""
    try:
        document = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}): `patchline deploy init` writes one to begin with"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(unreadable(str(path), error)) from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    try:
        return Shape.model_validate(document)
    except ValidationError as error:
        raise UserError(explain(str(path), "", Shape, error)) from error


def init(path: Path) -> None:
    """Write a shape file to begin with: 8 machines with 8 H100 each. Raises UserError where there is a file already."""
    if path.exists():
        raise UserError(f"{path} is there already: name another file, or remove it")
    write({path.name: example()}, path.parent)


def deploy(
    path: Path, folder: Path, *, only: Sequence[Part] = (), workflow: Workflow | None = None
) -> tuple[Shape, list[Path]]:
    """Write what a shape file stands for below a folder; returns the shape and the files.

    With a workflow there is a RayJob too, which runs it on a cluster of its own. Raises UserError.
    """
    shape = load_shape(path)
    files = render(shape, only)
    if workflow is not None:
        files |= job(shape, workflow.name, workflow.to_yaml())
    write(files, folder)
    return shape, [folder / name for name in files]


def part(name: str) -> Part:
    """One of the parts, by its name. Raises UserError."""
    known = get_args(Part)
    for found in known:
        if name == found:
            return found
    raise UserError(f"--only {name}: expected one of {', '.join(known)}")
