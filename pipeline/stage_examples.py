"""For the stages' pages: an example of each kind, and the files that each kind makes."""

from __future__ import annotations

import re

from pipeline.config import RECIPES

SHIPPED = {
    "ingest": ("folder", "ingest"),
    "pretrain": ("folder", "pretrain"),
    "finetune": ("folder", "finetune"),
    "fewshot": ("digits", "fewshot"),
    "subset": ("scaling", "tenth"),
    "import": ("finetune/flowers", "weights"),
    "summary": ("families", "families"),
    "analyze": ("fashion", "analyze"),
    "scaling": ("scaling", "scaling"),
}
"""By kind, a recipe that ships and its stage of that kind."""
OWN = {
    "mixture": "mixed: {kind: mixture, data: [ingest, upstream], weights: [3, 1]}",
    "choice": "best: {kind: choice, from: [narrow, wide], metric: validation/loss, mode: min}",
    "features": "features: {data: ingest, from: pretrain, stored_as: float16}",
    "evaluate": "evaluate: {data: ingest, from: finetune, splits: [test]}",
}
"""Of kinds that no recipe has."""
MODEL = {
    "model.safetensors": "the weights, in fp32; the average's where there is one",
    "raw.safetensors": "with `polyak_decay`: the weights without averaging",
}
DATASET = {"tables/<split>.safetensors": "the split's shards: addresses, sizes, sha256, counts"}
FILES: dict[str, dict[str, str]] = {
    "ingest": {
        **DATASET,
        "tables/<split>.classes.safetensors": "images of each class",
        "bad.jsonl": "a line for each image that was left out, with the reason",
    },
    "mixture": DATASET,
    "subset": {
        **DATASET,
        "removed.jsonl": "a line for each image that was left out as a copy, with the one that it is a copy of",
        "unreadable.jsonl": "a line for each image that could not be compared",
    },
    "pretrain": MODEL,
    "finetune": MODEL,
    "import": {"model.safetensors": "the weights, in fp32"},
    "choice": MODEL,
    "summary": {"summary.csv": "mean, deviation and standard error of each figure, by group"},
    "features": {},
    "fewshot": {
        "fewshot.csv": "a row for each accuracy, with its standard error and lambda",
        "fewshot.png": "accuracy against shots",
        "table.json": "the same rows, and differences to the baselines, draw by draw",
        "features.json": "where the features lie that were used",
    },
    "evaluate": {
        "classes.csv": "accuracy of each class, and what it is most often taken for",
        "confusions.csv": "every pair of classes that occurs",
        "confusions.png": "the same as a picture, up to 50 classes",
        "calibration.csv": "confidence and accuracy by interval",
        "calibration.png": "the same as a picture",
    },
    "analyze": {
        f"{name}.{ending}": f"{what}{', as a picture' if ending == 'png' else ''}"
        for name, what in (
            ("attention_distance", "how far each head attends, in pixels"),
            ("attention_entropy", "how widely, in nats"),
            ("rollout", "what the output is made of, of some images"),
            ("filters", "principal components of the kernels that embed patches"),
            ("positions", "likeness of the position embeddings"),
        )
        for ending in ("csv", "png")
    },
    "scaling": {
        f"{name}.{ending}": f"{what}{', as a picture' if ending == 'png' else ''}"
        for name, what in (
            ("compute", "accuracy against exaFLOPs"),
            ("data", "accuracy against images"),
            ("agreement", "few-shot against fine-tuned accuracy"),
        )
        for ending in ("csv", "png")
    },
}
"""Of the output's folder, by kind. `<split>` is a split's name."""


def example(kind: str) -> tuple[str, str]:
    """A stage of this kind as a workflow file has it, and the name of the recipe that it is from, or nothing."""
    if kind in OWN:
        return OWN[kind], ""
    recipe, stage = SHIPPED[kind]
    text = (RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8")
    found = re.search(rf"^  {stage}:.*\n(?:    .*\n|\n)*", text, re.MULTILINE)
    if found is None:
        raise LookupError(f"recipe {recipe} has no stage {stage}")
    return "\n".join(line[2:] for line in found[0].splitlines()), recipe
