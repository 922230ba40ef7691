"""The workflow file: stages by name, each of a kind, referring to each other. Reading it and its errors.

A workflow is named by its file, or by its name where it ships in `pipeline/recipes/`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, SerializeAsAny, ValidationError, field_validator

from cluster.errors import UserError, check_format, nearest
from pipeline.branch import branched
from pipeline.consistency import check_stages
from pipeline.consistency_register import check_registration
from pipeline.explain import explain
from pipeline.for_each import spread
from pipeline.identity import references, wanted_outputs
from pipeline.kinds import KINDS, config_of, kind_of
from pipeline.notify_config import NotifyConfig
from pipeline.opaque import OpaqueConfig, looked_for, opaque
from pipeline.places import with_lines
from pipeline.register_config import RegisterConfig
from pipeline.repeats import repeat
from pipeline.spelling import plain_references
from pipeline.sweep import expand
from pipeline.yaml_file import apply_override, read_yaml, unreadable
from stages.config import Config, StageConfig

BESIDE = {
    "sweep": {"type": "object", "description": "fields, each with a list of values: a stage for each combination"},
    "choose": {
        "type": ["object", "string"],
        "description": "which of a sweep's models is this stage's: metric, and mode max or min; none chooses none",
    },
    "for_each": {"type": "string", "description": "a stage for each of those that this one, with sweep or seeds, is"},
    "seeds": {
        "type": "array",
        "items": {"type": "integer", "minimum": 0},
        "description": "a stage for each of these seeds, and the mean of their figures",
    },
    "branch": {
        "type": "object",
        "description": "of a pretrain stage: from, such as pretrain@200000, and cooldown, the updates after that",
    },
}
"""What a stage of the file may have beside its own fields; see `pipeline.sweep`, `.repeats`, `.branch`."""
MADE = {"choose": ("model",), "seeds": ("model", "evaluation")}
"""Of these, what only a stage that makes one of these may have."""
RECIPES = Path(__file__).parent / "recipes"
FORMAT = 1
"""Of a stored workflow file. A user's own need not name it."""


class Workflow(Config):
    """A named graph of stages. In Python: `Workflow(name="mine", stages={"ingest": IngestConfig(...), ...})`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,60}$", description="name of the workflow")
    description: str = Field("", description="one line, shown in MLflow")
    seed: int = Field(0, ge=0, description="seed of every stage that has none of its own")
    pin: dict[str, str] = Field(
        default_factory=dict, description="versions that the driver's machine has to have, by package: torch, python, …"
    )
    notify: NotifyConfig | None = Field(
        None, description="what a webhook is told of; all, where the driver's machine has PATCHLINE_WEBHOOK"
    )
    # Not by its name in the file: classes have a method of that name.
    registration: RegisterConfig | None = Field(
        None, alias="register", description="the model that becomes a version of a registered model in MLflow"
    )
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
                circle = visiting[visiting.index(name) :]
                if any(isinstance(self.stages[one], OpaqueConfig) for one in circle):
                    # There was none when it was stored: what looks like a reference is none.
                    return
                cycle = " → ".join([*circle, name])
                raise UserError(f"stages.{name}: stages refer to each other in a circle: {cycle}")
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
        # What a stage has to be, nobody can tell without its class; it was checked when it was stored.
        if not any(isinstance(config, OpaqueConfig) for config in self.stages.values()):
            check_stages(self.stages)
            if self.registration is not None:
                check_registration(self.stages, self.registration)

    def check_imported(self) -> None:
        """Raise UserError where a stage's class cannot be imported here: then it cannot be planned, sent or run."""
        for name, config in self.stages.items():
            if isinstance(config, OpaqueConfig):
                raise UserError(f"stages.{name}.kind: {config.refusal()}")

    def seed_of(self, name: str) -> int:
        """The seed of a stage: its own or the workflow's."""
        own = self.stages[name].seed
        return self.seed if own is None else own

    def run(self, *, root: str | None = None, mlflow: str | None = None) -> tuple[str, str]:
        """Run it in this process, without a Ray cluster; returns its id and its state."""
        from pipeline import api
        from pipeline.settings import resolve

        return api.run(self, resolve(root=root, mlflow=mlflow))

    def submit(self, address: str | None = None, *, root: str | None = None, mlflow: str | None = None) -> str:
        """Send it to the Ray cluster whose job server has this address, or to the local stack; returns its id."""
        from pipeline import api
        from pipeline.settings import resolve

        return api.submit(self, resolve(root=root, mlflow=mlflow, address=address))

    def to_yaml(self) -> str:
        """The whole workflow, every field written out, in the form that `load_workflow` reads."""
        document = {"format": FORMAT, **self.model_dump(mode="json", by_alias=True, exclude={"stages"})}
        document["stages"] = {
            name: {"kind": kind_of(stage), **stage.model_dump(mode="json", by_alias=True)}
            for name, stage in self.stages.items()
        }
        return yaml.safe_dump(document, sort_keys=False)

    def _check_reference(self, name: str, field: str, target: str) -> None:
        if isinstance(self.stages[name], OpaqueConfig):
            return
        config = type(self.stages[name])
        field, dot, number = field.partition(".")
        key = f"stages.{name}.{config.model_fields[field].alias or field}{dot}{number}"
        if target not in self.stages:
            known = ", ".join(self.stages)
            raise UserError(f"{key}: got '{target}', expected one of the stages: {known}{nearest(target, self.stages)}")
        if isinstance(self.stages[target], OpaqueConfig):
            return
        found, wanted = self.stages[target].output, wanted_outputs(config, field)
        if found not in wanted:
            expected = " or ".join(map(_with_article, wanted))
            raise UserError(f"{key}: stage '{target}' makes {_with_article(found)}, expected one that makes {expected}")


def _with_article(output: str) -> str:
    if output in ("features", "figures"):
        return output
    return f"{'an' if output[0] in 'aeiou' else 'a'} {output}"


def _check_stage_name(place: str, name: Any) -> None:
    # Names become parts of addresses, of commands and of MLflow's metrics.
    named = isinstance(name, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,99}", name)
    if not named or name == "workflow":
        raise UserError(
            f"{place}got a stage named {name!r}, expected a letter, then letters, digits, - and _, but not 'workflow'"
        )


def shipped() -> list[str]:
    """Names of the workflows that ship: those to begin with, then those of tables."""
    names = [path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml")]
    return sorted(names, key=lambda name: ("/" in name, name))


def load_workflow(name: str, overrides: Iterable[str] = ()) -> Workflow:
    """Read a workflow by its file or shipped name, with overrides such as `pretrain.epochs=3`.

    Raises UserError with the path of the field, the value and what was expected.
    """
    path = Path(name)
    if not path.is_file():
        if name not in shipped():
            raise UserError(_no_file(path))
        path = RECIPES / f"{name}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    return parse_workflow(text, str(path), overrides)


def _no_file(path: Path) -> str:
    """What to say of a name that is neither a workflow file's nor that of one that ships."""
    if path.is_dir():
        return f"{path} is a folder, expected a workflow file: `patchline init {path}` writes one for images in it"
    beside = [str(file) for pattern in ("*.yaml", "*.yml") for file in path.parent.glob(pattern)]
    known = [name for name in shipped() if "/" not in name]
    hint = nearest(path, [*beside, *shipped()])
    return (
        f"no workflow file '{path}'{f'{hint} S' if hint else '; s'}hipped workflows: {', '.join(known)}, and rows of "
        "tables such as imagenet21k/b16 (docs/recipes.md); `patchline init` writes a file for your images"
    )


def _form(value: Any) -> str:
    """What a part of a file is, in a word."""
    if value is None:
        return "nothing"
    return {dict: "a mapping without stages", list: "a list", str: "a text"}.get(type(value), repr(value))


def parse_workflow(text: str, source: str, overrides: Iterable[str] = (), *, stored: bool = False) -> Workflow:
    """A workflow from the text of a workflow file. `source` names it in errors.

    Of one that is `stored`, written out in full, stages whose class cannot be imported here are read too: as
    `OpaqueConfig`, which can be looked at alone.
    """
    try:
        document = read_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(unreadable(source, error)) from error
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    if isinstance(document, dict):
        # First of all: a newer format may have other keys.
        _check_format(source, document.pop("format", FORMAT))
    if not isinstance(document, dict) or "stages" not in document:
        begin = "`patchline init` writes one to begin with"
        raise UserError(f"{source}: got {_form(document)}, expected a mapping with the keys name and stages: {begin}")
    if not isinstance(document["stages"], dict):
        found = _form(document["stages"])
        raise UserError(f"{source}: stages: got {found}, expected stages by name, each indented below `stages:`")
    own = [info.alias or name for name, info in Workflow.model_fields.items()]
    overridden = [apply_override(document, override, own) for override in overrides]
    try:
        return _workflow(source, document, stored)
    except UserError as error:
        raise UserError(with_lines(str(error), source, text, overridden)) from error.__cause__


def _workflow(source: str, document: dict[str, Any], stored: bool) -> Workflow:
    stages = _stages(source, document["stages"], stored)
    try:
        workflow = Workflow.model_validate({**document, "stages": stages})
    except ValidationError as error:
        raise UserError(explain(source, "", Workflow, error)) from error
    try:
        workflow.check()
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    return workflow


def json_schema() -> dict[str, Any]:
    """JSON schema of the workflow file, for editors."""
    schema = Workflow.model_json_schema()
    definitions: dict[str, Any] = {}
    for own in (NotifyConfig, RegisterConfig):
        definitions[own.__name__] = own.model_json_schema()
        definitions |= definitions[own.__name__].pop("$defs", {})
    choices = []
    for kind, config in KINDS.items():
        stage = config.model_json_schema(by_alias=True, ref_template="#/$defs/{model}")
        definitions |= stage.pop("$defs", {})
        beside = {key: value for key, value in BESIDE.items() if config.output in MADE.get(key, (config.output,))}
        stage["properties"] = {"kind": {"const": kind}, **stage["properties"], **beside}
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


def _stages(source: str, bodies: dict[Any, Any], stored: bool) -> dict[str, StageConfig]:
    stages: dict[str, StageConfig] = {}
    for name, expanded in _expanded(source, bodies).items():
        for own, fields in expanded.items():
            if own in stages or (own != name and own in bodies):
                by = next((key for key in BESIDE if key in bodies.get(name, ())), "for_each")
                raise UserError(f"{source}: stages.{name}.{by}: there is another stage called '{own}'")
            stages[own] = _stage(source, own, fields, bodies.keys() if stored else None)
    return stages


def _expanded(source: str, bodies: dict[Any, Any]) -> dict[str, dict[str, Any]]:
    """The stages, by name, that each stage stands for: itself alone, those of a sweep, those of seeds.

    Those of the file, with others in the place of each that has `for_each`.
    """
    expanded: dict[str, dict[str, Any]] = {}
    for name in bodies:
        _check_stage_name(f"{source}: stages: ", name)
    try:
        spread_out, groups = spread(bodies)
        for name in spread_out:
            body = branched(name, spread_out)
            expanded[name] = expand(name, body) if isinstance(body, dict) else {name: body}
        return repeat(expanded, groups)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def _stage(source: str, name: Any, body: Any, stored: Collection[str] | None) -> StageConfig:
    """A stage; `stored` are the names of its workflow's where that is a stored one."""
    _check_stage_name(f"{source}: stages: ", name)
    key = f"stages.{name}"
    if not isinstance(body, dict):
        raise UserError(f"{source}: {key}: got {body!r}, expected a mapping of the stage's fields")
    body = dict(body)
    kind = body.pop("kind", name)
    if not isinstance(kind, str):
        raise UserError(f"{source}: {key}.kind: got {kind!r}, expected one of {', '.join(KINDS)}")
    foreign = stored is not None and ":" in kind
    try:
        config = config_of(kind)
    except UserError as error:
        if foreign:
            return _opaque(source, key, kind, body, stored or (), f"{error} {looked_for()}")
        raise UserError(f"{source}: {key}.kind: {error}") from error
    try:
        return _validated(source, key, config, body)
    except UserError as error:
        if foreign:
            why = f"its class no longer takes what is stored: {str(error).removeprefix(f'{source}: ')}"
            return _opaque(source, key, kind, body, stored or (), why)
        raise


def _validated(source: str, key: str, config: type[StageConfig], body: dict[str, Any]) -> StageConfig:
    try:
        return config.model_validate(plain_references(config, body))
    except ValidationError as error:
        raise UserError(explain(source, key, config, error)) from error
    except UserError as error:
        raise UserError(f"{source}: {key}.{error}") from error


def _opaque(source: str, key: str, kind: str, body: dict[str, Any], stored: Collection[str], why: str) -> OpaqueConfig:
    try:
        return opaque(kind, body, stored, why)
    except ValidationError as error:
        raise UserError(explain(source, key, OpaqueConfig, error)) from error
