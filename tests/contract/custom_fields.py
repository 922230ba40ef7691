"""Holds documents against the fields of KubeRay's and Karpenter's resources, from tools/custom_fields.py."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
KNOWN: dict[str, dict[str, Any]] = {
    name: json.loads(gzip.decompress((DATA / f"{name}_fields.json.gz").read_bytes()))
    for name in ("kuberay", "karpenter")
}
GROUPS = {"ray.io/v1": "kuberay", "karpenter.sh/v1": "karpenter", "karpenter.k8s.aws/v1": "karpenter"}
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}


def problems(document: dict[str, Any]) -> list[str]:
    """What is wrong with a custom resource: each problem's path, and what was expected."""
    if document["apiVersion"] not in GROUPS:
        return [f"apiVersion: {document['apiVersion']}"]
    known = KNOWN[GROUPS[document["apiVersion"]]]
    return _problems(known["nodes"], document, known["kinds"][document["kind"]], document["kind"])


def _problems(nodes: list[dict[str, Any]], value: Any, number: int, path: str) -> list[str]:
    node = nodes[number]
    wanted = node.get("type", [])
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if wanted and not any(_is_a(value, name) for name in wanted):
        return [f"{path}: expected {' or '.join(wanted)}, got {value!r}"]
    found = [f"{path}: {words}" for words in _out_of_bounds(value, node)]
    if isinstance(value, list) and "items" in node:
        found += [
            line
            for place, item in enumerate(value)
            for line in _problems(nodes, item, node["items"], f"{path}[{place}]")
        ]
    if isinstance(value, dict):
        found += [f"{path}.{name}: is missing" for name in node.get("required", []) if name not in value]
        for name, item in value.items():
            inner = node.get("fields", {}).get(name, node.get("values"))
            if inner is not None:
                found += _problems(nodes, item, inner, f"{path}.{name}")
            elif "fields" in node:
                found.append(f"{path}.{name}: unknown field")
    return found


def _is_a(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, TYPES[name])


def _out_of_bounds(value: Any, node: dict[str, Any]) -> list[str]:
    found = []
    if "enum" in node and value not in node["enum"]:
        found.append(f"got {value!r}, expected one of {node['enum']}")
    if isinstance(value, str) and "pattern" in node and not re.search(node["pattern"], value):
        found.append(f"{value!r} does not match {node['pattern']}")
    if isinstance(value, (int, float)) and value < node.get("minimum", value):
        found.append(f"{value} is less than {node['minimum']}")
    if isinstance(value, (int, float)) and value > node.get("maximum", value):
        found.append(f"{value} is more than {node['maximum']}")
    if isinstance(value, (str, list)):
        unit = "Length" if isinstance(value, str) else "Items"
        if not node.get(f"min{unit}", 0) <= len(value) <= node.get(f"max{unit}", len(value)):
            found.append(f"has {len(value)} {unit.lower()}")
    return found
