"""Where in a workflow file a field stands, for messages about it."""

from __future__ import annotations

import re
from collections.abc import Collection

import yaml

Path = tuple[str, ...]
NAMED = re.compile(r"(?:stages|register)\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")


def lines(text: str) -> dict[Path, int]:
    """The line, from 1 on, of every key in a YAML text, by its path."""
    found: dict[Path, int] = {}

    def visit(node: yaml.Node | None, path: Path) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                own = (*path, str(key.value))
                found[own] = key.start_mark.line + 1
                visit(value, own)

    visit(yaml.compose(text, Loader=yaml.SafeLoader), ())
    return found


def with_lines(message: str, source: str, text: str, overridden: Collection[Path]) -> str:
    """A message, each of whose lines begins with the field's place, such as `source: stages.NAME.FIELD` or
    `source: register.FIELD`, with the line of that field in the text.

    What was given beside the file has none.
    """
    known = lines(text)
    return "\n".join(_with_line(line, source, known, overridden) for line in message.splitlines())


def _with_line(line: str, source: str, known: dict[Path, int], overridden: Collection[Path]) -> str:
    rest = line.removeprefix(f"{source}: ")
    named = NAMED.match(rest)
    if rest == line or named is None:
        return line
    path = tuple(named[0].split("."))
    if any(path[: len(other)] == other for other in overridden):
        return line
    while path and path not in known:
        path = path[:-1]
    # `stages` alone is no place of a stage: one of a sweep has none of its own.
    return f"{source}:{known[path]}: {rest}" if len(path) > 1 else line
