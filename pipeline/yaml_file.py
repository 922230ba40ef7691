"""Reading YAML, and overriding what it says."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import yaml

from cluster.errors import UserError, nearest

Path = tuple[str, ...]


class Loader(yaml.SafeLoader):
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


def read_yaml(text: str) -> Any:
    """What a text of YAML says. Raises YAMLError; UserError where a mapping has a key twice."""
    return yaml.load(text, Loader=Loader)


def unreadable(source: str, error: yaml.YAMLError) -> str:
    """What is wrong with a text that is no YAML: its line, what is there, and what to look at."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"{source}: not readable as YAML: {' '.join(str(error).split())}"
    place = f"{source}:{mark.line + 1}: not readable as YAML"
    problem = getattr(error, "problem", None) or "it ends there"
    if "'\\t'" in problem:
        return f"{place}: a tab, expected spaces: YAML is indented by spaces alone"
    begun = getattr(error, "context_mark", None)
    within = f", in what begins in line {begun.line + 1}" if begun is not None else ""
    return f"{place}: {problem}{within}: look at the indentation, and for a missing colon, comma or bracket"


def with_fields(name: str, value: Any) -> dict[str, Any] | None:
    """The fields of what stands under this name in a workflow file; None where it can have none.

    `model: B/16` is short for `model: {variant: B/16}`.
    """
    if name == "model" and isinstance(value, str):
        return {"variant": value}
    return value if isinstance(value, dict) else None


def _no_stage(parts: list[str], stages: dict[str, Any]) -> str:
    """What to say of an override that begins with no stage: that it is one's field, where it is."""
    name = parts[0]
    told = f"'{name}' is no stage of this workflow; its stages: {', '.join(stages)}"
    having = [stage for stage, body in stages.items() if isinstance(body, dict) and name in body]
    if having:
        return f"{told}; did you mean {' or '.join(f'{stage}.{name}' for stage in having)}?"
    return told + nearest(name, stages)


def apply_override(document: dict[str, Any], override: str, own_fields: Collection[str]) -> Path:
    """Set what an override such as `pretrain.epochs=3` says, and return the path of its field.

    `own_fields` are those of the document itself, beside its stages. Raises UserError.
    """
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"-o {override}: expected a field and a value, for example -o pretrain.epochs=3")
    try:
        value = read_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"-o {override}: the value is not readable as YAML") from error
    except UserError as error:
        raise UserError(f"-o {override}: {error}") from error
    parts = path.split(".")
    if parts[0] == "stages" and len(parts) > 1:
        parts = parts[1:]
    if parts[0] in document["stages"] and len(parts) > 1:
        target = document["stages"]
    elif parts[0] in own_fields and parts[0] != "stages" and len(parts) == 1:
        target = document
    elif parts[0] in document["stages"]:
        raise UserError(f"-o {override}: '{parts[0]}' is a stage: name one of its fields, such as {parts[0]}.seed=1")
    else:
        raise UserError(f"-o {override}: {_no_stage(parts, document['stages'])}")
    for part in parts[:-1]:
        if target.get(part) is None:
            target[part] = {}
        inner = with_fields(part, target[part])
        if inner is None:
            raise UserError(f"-o {override}: '{part}' is {target[part]!r} and has no fields")
        target[part] = inner
        target = inner
    target[parts[-1]] = value
    return tuple(parts) if parts[0] in own_fields else ("stages", *parts)
