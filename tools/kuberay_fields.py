"""Writes tests/contract/data/kuberay_fields.json.gz: which fields KubeRay's resources have, and of which types.

`.venv/bin/python tools/kuberay_fields.py VERSION RAYCLUSTERS.yaml RAYJOBS.yaml`, with that version's definitions, from
`ray-operator/config/crd/bases` of github.com/ray-project/kuberay (Apache-2.0). Names, types, bounds and which fields
have to be there are kept; descriptions are not. Equal parts, such as a pod's, are there once.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml

TARGET = Path(__file__).parents[1] / "tests/contract/data/kuberay_fields.json.gz"
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


def main(version: str, *paths: str) -> None:
    table, kinds = Table(), dict[str, int]()
    for path in paths:
        spec = yaml.safe_load(Path(path).read_text())["spec"]
        (schema,) = [found["schema"]["openAPIV3Schema"] for found in spec["versions"] if found["name"] == "v1"]
        kinds[spec["names"]["kind"]] = table.add(schema)
    source = {"project": "ray-project/kuberay", "version": version, "license": "Apache-2.0"}
    text = json.dumps({"source": source, "kinds": kinds, "nodes": table.nodes}, separators=(",", ":"))
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{TARGET.name}: {', '.join(kinds)}; {len(table.nodes)} nodes, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
