"""The workflow file: stages by name, each of a kind, referring to each other. Reading it and its errors.

A workflow is named by its file, or by its name where it ships in `pipeline/recipes/`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, field_validator

from cluster.errors import UserError, check_format
from pipeline.consistency import check_stages
from pipeline.identity import references
from pipeline.kinds import KINDS
from stages.config import Config, StageConfig

RECIPES = Path(__file__).parent / "recipes"
FORMAT = 1
"""Of a stored workflow file. A user's own need not name it."""


class Workflow(Config):
    """A named graph of stages. In Python: `Workflow(name="mine", stages={"ingest": IngestConfig(...), ...})`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,60}$", description="name of the workflow")
    description: str = Field("", description="one line, shown in MLflow")
    seed: int = Field(0, ge=0, description="seed of every stage that has none of its own")
    stages: dict[str, SerializeAsAny[StageConfig]] = Field(min_length=1, description="stages by name")

    @field_validator("stages")
    @classmethod
    def _check_names(cls, stages: dict[str, StageConfig]) -> dict[str, StageConfig]:
        for name in stages:
            _check_stage_name("", name)
        return stages

    def order(self) -> list[str]:
        """Names of the stages, each after what it refers to. Raises UserError for cycles and dangling names."""
        ordered: list[str] = []
        visiting: list[str] = []

        def visit(name: str) -> None:
            if name in ordered:
                return
            if name in visiting:
                cycle = " → ".join([*visiting[visiting.index(name) :], name])
                raise UserError(f"stages refer to each other in a circle: {cycle}")
            visiting.append(name)
            for field, target in references(self.stages[name]).items():
                self._check_reference(name, field, target)
                visit(target)
            visiting.pop()
            ordered.append(name)

        for name in self.stages:
            visit(name)
        return ordered

    def check(self) -> None:
        """Raise UserError where the stages contradict each other."""
        self.order()
        check_stages(self.stages)

    def seed_of(self, name: str) -> int:
        """The seed of a stage: its own or the workflow's."""
        own = self.stages[name].seed
        return self.seed if own is None else own

    def to_yaml(self) -> str:
        """The whole workflow, every field written out, in the form that `load_workflow` reads."""
        document = {"format": FORMAT, **self.model_dump(mode="json", by_alias=True, exclude={"stages"})}
        document["stages"] = {
            name: {"kind": stage.kind, **stage.model_dump(mode="json", by_alias=True)}
            for name, stage in self.stages.items()
        }
        return yaml.safe_dump(document, sort_keys=False)

    def _check_reference(self, name: str, field: str, target: str) -> None:
        config = type(self.stages[name])
        field, dot, number = field.partition(".")
        info = config.model_fields[field]
        key = f"stages.{name}.{info.alias or field}{dot}{number}"
        if target not in self.stages:
            raise UserError(f"{key}: got '{target}', expected one of the stages: {', '.join(self.stages)}")
        extra = info.json_schema_extra
        wanted = extra["output"] if isinstance(extra, dict) else None
        found = self.stages[target].output
        if found != wanted:
            raise UserError(f"{key}: stage '{target}' makes a {found}, expected one that makes a {wanted}")


def _check_stage_name(place: str, name: Any) -> None:
    # Names become parts of addresses, of commands and of MLflow's metrics.
    named = isinstance(name, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,60}", name)
    if not named or name == "workflow":
        raise UserError(
            f"{place}got a stage named {name!r}, expected a letter, then letters, digits, - and _, but not 'workflow'"
        )


def shipped() -> list[str]:
    """Names of the workflows that ship."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_workflow(name: str, overrides: Iterable[str] = ()) -> Workflow:
    """Read a workflow by its file or shipped name, with overrides such as `pretrain.epochs=3`.

    Raises UserError with the path of the field, the value and what was expected.
    """
    path = Path(name)
    if not path.is_file():
        shipped_path = RECIPES / f"{name}.yaml"
        if not shipped_path.is_file():
            raise UserError(f"no workflow file '{name}'; shipped workflows: {', '.join(shipped())}")
        path = shipped_path
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    return parse_workflow(text, str(path), overrides)


def parse_workflow(text: str, source: str, overrides: Iterable[str] = ()) -> Workflow:
    """A workflow from the text of a workflow file. `source` names it in errors."""
    try:
        document = _read_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not readable as YAML: {' '.join(str(error).split())}") from error
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    if isinstance(document, dict):
        # First of all: a newer format may have other keys.
        _check_format(source, document.pop("format", FORMAT))
    if not isinstance(document, dict) or not isinstance(document.get("stages"), dict):
        raise UserError(f"{source}: expected a mapping with the keys name and stages")
    for override in overrides:
        _override(document, override)
    stages = {name: _stage(source, name, body) for name, body in document["stages"].items()}
    try:
        workflow = Workflow.model_validate({**document, "stages": stages})
    except ValidationError as error:
        raise UserError(_explain(source, "", Workflow, error)) from error
    try:
        workflow.check()
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    return workflow


def json_schema() -> dict[str, Any]:
    """JSON schema of the workflow file, for editors."""
    schema = Workflow.model_json_schema()
    definitions: dict[str, Any] = {}
    choices = []
    for kind, config in KINDS.items():
        stage = config.model_json_schema(by_alias=True, ref_template="#/$defs/{model}")
        definitions |= stage.pop("$defs", {})
        stage["properties"] = {"kind": {"const": kind}, **stage["properties"]}
        definitions[config.__name__] = stage
        choices.append({"$ref": f"#/$defs/{config.__name__}"})
    schema["properties"]["format"] = {"const": FORMAT, "description": "of this file; need not be there"}
    schema["properties"]["stages"]["additionalProperties"] = {"anyOf": choices}
    schema["$defs"] = definitions
    return schema


def _check_format(source: str, found: Any) -> None:
    if not isinstance(found, int):
        raise UserError(f"{source}: format: got {found!r}, expected {FORMAT}, or no such field")
    check_format(found, FORMAT, source)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader takes the last of two equal keys and says nothing; this one refuses them."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode | None:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, Any], int] = {}
        for key, _ in node.value if node is not None else ():
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if (key.tag, key.value) in lines:
                first = lines[key.tag, key.value]
                raise UserError(f"line {line}: '{key.value}' is there twice, first in line {first}: take one away")
            lines[key.tag, key.value] = line
        return node


def _read_yaml(text: str) -> Any:
    """What a text of YAML says. Raises YAMLError; UserError where a mapping has a key twice."""
    return yaml.load(text, Loader=_Loader)


def _stage(source: str, name: Any, body: Any) -> StageConfig:
    _check_stage_name(f"{source}: stages: ", name)
    key = f"stages.{name}"
    if not isinstance(body, dict):
        raise UserError(f"{source}: {key}: got {body!r}, expected a mapping of the stage's fields")
    body = dict(body)
    kind = body.pop("kind", name)
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{source}: {key}.kind: got {kind!r}, expected one of {', '.join(KINDS)}")
    try:
        return KINDS[kind].model_validate(body)
    except ValidationError as error:
        raise UserError(_explain(source, key, KINDS[kind], error)) from error


def _override(document: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"-o {override}: expected a field and a value, for example -o pretrain.epochs=3")
    try:
        value = _read_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"-o {override}: the value is not readable as YAML") from error
    except UserError as error:
        raise UserError(f"-o {override}: {error}") from error
    parts = path.split(".")
    if parts[0] == "stages" and len(parts) > 1:
        parts = parts[1:]
    if parts[0] in document["stages"] and len(parts) > 1:
        target = document["stages"]
    elif parts[0] in Workflow.model_fields and parts[0] != "stages" and len(parts) == 1:
        target = document
    elif parts[0] in document["stages"]:
        raise UserError(f"-o {override}: '{parts[0]}' is a stage: name one of its fields, such as {parts[0]}.seed=1")
    else:
        stages = ", ".join(document["stages"])
        raise UserError(f"-o {override}: '{parts[0]}' is no stage of this workflow; its stages: {stages}")
    for part in parts[:-1]:
        inner = target.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UserError(f"-o {override}: '{part}' is {inner!r} and has no fields")
        target = inner
    target[parts[-1]] = value


def _explain(source: str, key: str, model: type[BaseModel], error: ValidationError) -> str:
    """One line per problem: the path, the value, what was expected."""
    lines = []
    problem: Any
    for problem in error.errors():
        place = ".".join([key, *(str(part) for part in problem["loc"])]).strip(".")
        if problem["type"] == "extra_forbidden":
            lines.append(f"{source}: {place}: unknown field{_suggestion(model, problem['loc'])}")
        elif problem["type"] == "missing":
            lines.append(f"{source}: {place}: this field is required")
        elif problem["type"] == "union_tag_not_found":
            lines.append(f"{source}: {place}.{_tag(problem)}: this field is required")
        elif problem["type"] == "union_tag_invalid":
            found, known = problem["ctx"]["tag"], problem["ctx"]["expected_tags"].replace("'", "")
            lines.append(f"{source}: {place}.{_tag(problem)}: got {found!r}, expected one of {known}")
        elif problem["type"] in ("model_type", "model_attributes_type"):
            lines.append(f"{source}: {place}: got {_shown(problem['input'])}, expected a mapping of fields")
        elif problem["type"] == "value_error":
            lines.append(f"{source}: {place}: {problem['msg'].removeprefix('Value error, ')}")
        else:
            message = problem["msg"].replace("Input should be", "expected")
            lines.append(f"{source}: {place}: got {_shown(problem['input'])}, {message}")
    return "\n".join(lines)


def _tag(problem: Any) -> str:
    """Name of the field that says which of several models is meant."""
    return problem["ctx"]["discriminator"].strip("'")


def _suggestion(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """The nearest field name, where the unknown one looks like a slip of the keyboard."""
    fields: Mapping[str, Any] = model.model_fields
    for part in location[:-1]:
        annotation = fields[part].annotation if part in fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        fields = annotation.model_fields
    names = [info.alias or name for name, info in fields.items()]
    near = difflib.get_close_matches(str(location[-1]), names, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; known fields: {', '.join(names)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
