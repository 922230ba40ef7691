"""An evaluation's tables, for the stage's record and as files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stages.evaluate.tally import Tally

Rows = list[dict[str, Any]]


def class_rows(tally: Tally, names: Sequence[str]) -> Rows:
    """Each class that was seen: its images, how many were right, and what it was most often taken for."""
    by_truth: dict[int, dict[int, int]] = {}
    for (truth, predicted), count in tally.pairs.items():
        by_truth.setdefault(truth, {})[predicted] = count
    rows = []
    for truth, found in sorted(by_truth.items()):
        images, wrong = sum(found.values()), {name: count for name, count in found.items() if name != truth}
        # Of equal counts the first class.
        mistaken = min(wrong, key=lambda other: (-wrong[other], other)) if wrong else None
        rows.append(
            {
                "class": names[truth],
                "images": images,
                "right": found.get(truth, 0),
                "accuracy": found.get(truth, 0) / images,
                "most_often_taken_for": names[mistaken] if mistaken is not None else "",
                "times": wrong[mistaken] if mistaken is not None else 0,
            }
        )
    return rows


def confusion_rows(tally: Tally, names: Sequence[str]) -> Rows:
    """Every pair of true and predicted class that occurs, and how often."""
    return [
        {"class": names[truth], "predicted": names[predicted], "images": count}
        for (truth, predicted), count in sorted(tally.pairs.items())
    ]


def calibration_rows(tally: Tally) -> Rows:
    """Each bin of the confidence: its images, their mean confidence, and how many were right."""
    rows = []
    for number in range(tally.bins):
        images = int(tally.in_bin[number])
        rows.append(
            {
                "above": number / tally.bins,
                "up_to": (number + 1) / tally.bins,
                "images": images,
                "confidence": float(tally.confidence_in_bin[number]) / images if images else None,
                "accuracy": int(tally.hits_in_bin[number]) / images if images else None,
            }
        )
    return rows
