"""Writes tests/contract/data/NAME_fields.json.gz: which fields custom resources have, and of which types.

`.venv/bin/python tools/custom_fields.py NAME PROJECT VERSION FILE…`, with that version's definitions. KubeRay's are
those of RayCluster and RayJob in `ray-operator/config/crd/bases` of ray-project/kuberay; Karpenter's those of
EC2NodeClass and NodePool in `pkg/apis/crds` of aws/karpenter-provider-aws; both Apache-2.0. Names, types, bounds and
which fields have to be there are kept; descriptions, and rules over several fields, are not. Equal parts, such as a
pod's, are there once.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml

TARGETS = Path(__file__).parents[1] / "tests/contract/data"
KEPT = ("type", "required", "enum", "minimum", "maximum", "minItems", "maxItems", "minLength", "maxLength", "pattern")


class Table:
    """Nodes of schemas, each once; a node refers to others by their numbers."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []
        self._numbers: dict[str, int] = {}

    def add(self, schema: dict[str, Any]) -> int:
        """The number of this schema's node."""
        node = {key: schema[key] for key in KEPT if key in schema}
        if schema.get("x-kubernetes-int-or-string"):
            node["type"] = ["integer", "string"]
        if "properties" in schema:
            node["fields"] = {name: self.add(inner) for name, inner in sorted(schema["properties"].items())}
        if isinstance(schema.get("additionalProperties"), dict):
            node["values"] = self.add(schema["additionalProperties"])
        if "items" in schema:
            node["items"] = self.add(schema["items"])
        key = json.dumps(node, sort_keys=True)
        if key not in self._numbers:
            self._numbers[key] = len(self.nodes)
            self.nodes.append(node)
        return self._numbers[key]


def main(name: str, project: str, version: str, *paths: str) -> None:
    table, kinds = Table(), dict[str, int]()
    for path in paths:
        spec = yaml.safe_load(Path(path).read_text())["spec"]
        (schema,) = [found["schema"]["openAPIV3Schema"] for found in spec["versions"] if found["name"] == "v1"]
        kinds[spec["names"]["kind"]] = table.add(schema)
    source = {"project": project, "version": version, "license": "Apache-2.0"}
    text = json.dumps({"source": source, "kinds": kinds, "nodes": table.nodes}, separators=(",", ":"))
    TARGETS.mkdir(parents=True, exist_ok=True)
    target = TARGETS / f"{name}_fields.json.gz"
    target.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{target.name}: {', '.join(kinds)}; {len(table.nodes)} nodes, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
