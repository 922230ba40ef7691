"""Features of a data set as an output of their own."""

from __future__ import annotations

from stages.context import Context, Inputs, Result
from stages.features.config import FeaturesConfig
from stages.frozen.extract import extract
from stages.frozen.task import Part


def run(config: FeaturesConfig, inputs: Inputs, context: Context) -> Result:
    """Extract, and commit what says where the features are. A killed attempt's parts are used by the next."""
    found = extract(config, inputs["data"], inputs["model"], context)
    parts = [Part.from_json(part) for part in found.meta["parts"]]
    output = context.commit("features", [], found.meta)
    stored = sum(file.bytes for part in parts for file in part.files.values())
    metrics = {"images": float(sum(part.count for part in parts)), "bytes": float(stored)}
    return Result(output=output, metrics=metrics)
