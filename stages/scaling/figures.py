"""The figures, drawn 900 pixels wide: a colour for each network, a form for each data-set size.

Equal numbers give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.rendered import png_bytes
from stages.scaling.axes import different_counts, log_axis

Rows = Sequence[Mapping[str, Any]]
DOTS = 150
INCHES = 6.0
"""Of the width: 900 pixels."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""People with any kind of colour vision tell them apart (Okabe and Ito); the yellow is left out, faint on white."""
FILLS = ("full", "none", "left", "bottom")
"""Networks beyond the colours have them again, in marks that are filled in another way."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SIZE = 6.5
TEXT = 9


@dataclass(frozen=True, kw_only=True)
class Marks:
    """How networks and data-set sizes look, in all panels of a figure."""

    networks: tuple[str, ...]
    sizes: tuple[int | None, ...]

    @classmethod
    def of(cls, rows: Rows) -> Marks:
        """Networks in the order of the rows; sizes from the smallest to the largest, and last those not known."""
        sizes = {row["train_images"] for row in rows}
        return cls(
            networks=tuple(dict.fromkeys(row["network"] for row in rows)),
            sizes=tuple(sorted(sizes, key=lambda size: (size is None, size or 0))),
        )

    def style(self, network: str, size: int | None = None, *, sized: bool = True) -> dict[str, Any]:
        """Of the points of a network, in the form of a data-set size."""
        number = self.networks.index(network)
        return {
            "color": COLOURS[number % len(COLOURS)],
            "fillstyle": FILLS[number // len(COLOURS) % len(FILLS)],
            "marker": MARKERS[self.sizes.index(size) % len(MARKERS)] if sized else MARKERS[0],
            "markersize": SIZE,
        }


def compute_figure(kinds: Mapping[str, Rows], labels: Mapping[str, str]) -> bytes:
    """Accuracy against exaFLOPs, a panel for each kind. Lines join lengths of training on the same images."""
    marks = Marks.of(_all(kinds))
    figure, panels = _panels(kinds, labels)
    for panel, (kind, rows) in zip(panels, kinds.items(), strict=True):
        for network in marks.networks:
            for size in marks.sizes:
                own = [row for row in rows if (row["network"], row["train_images"]) == (network, size)]
                own = sorted(own, key=lambda row: row["exaflops"])
                _points(panel, own, "exaflops", kind, marks.style(network, size), line=len(own) > 1)
        log_axis(panel, [row["exaflops"] for row in rows], "exaFLOPs of pretraining", fontsize=TEXT)
    _legends(figure, marks, sized=len(marks.sizes) > 1, bars=has_bars(kinds))
    return png_bytes(figure)


def data_figure(kinds: Mapping[str, Rows], labels: Mapping[str, str]) -> bytes:
    """Accuracy against the number of pretraining images, a panel for each kind.

    A network's line goes through those that were trained longest on each number of images.
    """
    marks = Marks.of(_all(kinds))
    figure, panels = _panels(kinds, labels)
    for panel, (kind, rows) in zip(panels, kinds.items(), strict=True):
        for network in marks.networks:
            own = [row for row in rows if row["network"] == network]
            style = marks.style(network, sized=False)
            longest = {row["train_images"]: row for row in sorted(own, key=lambda row: row["images_seen"])}
            through = [longest[size] for size in sorted(longest)]
            _points(panel, through, "train_images", kind, style, line=True)
            shorter = [row for row in own if row not in through]
            _points(panel, shorter, "train_images", kind, {**style, "alpha": 0.45}, line=False)
        sizes = [row["train_images"] for row in rows]
        log_axis(panel, sizes, "images of pretraining", at_values=True, fontsize=TEXT)
    _legends(figure, marks, sized=False, bars=has_bars(kinds))
    return png_bytes(figure)


def agreement_figure(rows: Rows, labels: Mapping[str, str], title: str) -> bytes:
    """A dot for each model: few-shot accuracy from left to right, fine-tuned accuracy upwards."""
    marks = Marks.of(rows)
    figure = _figure(4.4)
    panel = figure.subplots()
    for row in rows:
        style = marks.style(row["network"], row["train_images"])
        panel.plot(100 * row["fewshot"], 100 * row["finetuned"], linestyle="", alpha=0.85, **style)
    panel.margins(0.06)
    panel.set_xlabel(labels["fewshot"], fontsize=TEXT)
    panel.set_ylabel(labels["finetuned"], fontsize=TEXT)
    panel.set_title(title, fontsize=11)
    _finish(panel)
    _legends(figure, marks, sized=len(marks.sizes) > 1, bars=False)
    return png_bytes(figure)


def has_bars(kinds: Mapping[str, Rows]) -> bool:
    """Whether there are repeats, whose standard deviations are shown."""
    return any(row[f"{kind}_deviation"] is not None for kind, rows in kinds.items() for row in rows)


def _all(kinds: Mapping[str, Rows]) -> Rows:
    return [row for rows in kinds.values() for row in rows]


def _points(panel: Any, rows: Rows, axis: str, kind: str, style: Mapping[str, Any], *, line: bool) -> None:
    """Means as marks, with a bar of one standard deviation each way where there are repeats."""
    if not rows:
        return
    panel.errorbar(
        [row[axis] for row in rows],
        [100 * row[kind] for row in rows],
        yerr=[100 * (row[f"{kind}_deviation"] or 0.0) for row in rows],
        linestyle="-" if line else "",
        linewidth=1.2,
        elinewidth=1.2,
        capsize=3 if any(row[f"{kind}_deviation"] for row in rows) else 0,
        **style,
    )


def _panels(kinds: Mapping[str, Rows], labels: Mapping[str, str]) -> tuple[Any, Any]:
    """A figure with a panel for each kind of accuracy, side by side."""
    figure = _figure(3.9)
    # Room between a panel and what is written beside the next one.
    figure.get_layout_engine().set(wspace=0.06)
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for panel, kind in zip(panels, kinds, strict=True):
        panel.set_ylabel(labels[kind], fontsize=TEXT)
        _finish(panel)
    return figure, panels


def _finish(panel: Any) -> None:
    panel.tick_params(labelsize=TEXT)
    panel.grid(alpha=0.25)


def _legends(figure: Any, marks: Marks, *, sized: bool, bars: bool) -> None:
    """The networks below; above, where they tell something, the forms of the data-set sizes, and what bars are."""
    from matplotlib.lines import Line2D

    networks = [
        Line2D([], [], linestyle="", label=network, **marks.style(network, sized=False)) for network in marks.networks
    ]
    _legend(figure, networks, "outside lower center")
    grey: dict[str, Any] = {"linestyle": "", "color": "0.35"}
    forms = []
    if sized:
        known = [size for size in marks.sizes if size is not None]
        names = [f"{count} images" for count in different_counts(known)] + ["images not known"] * (None in marks.sizes)
        forms = [
            Line2D([], [], marker=MARKERS[number % len(MARKERS)], markersize=SIZE, label=name, **grey)
            for number, name in enumerate(names)
        ]
    if bars:
        forms.append(Line2D([], [], marker="|", markersize=11, label="standard deviation of repeats", **grey))
    if forms:
        _legend(figure, forms, "outside upper center")


def _legend(figure: Any, handles: Sequence[Any], place: str) -> None:
    """In as many columns as fit the width."""
    longest = max(len(handle.get_label()) for handle in handles)
    columns = max(1, min(len(handles), int(INCHES / (0.42 + 0.072 * longest))))
    rows = -(-len(handles) // columns)
    figure.legend(
        handles=handles, loc=place, ncols=-(-len(handles) // rows), frameon=False, fontsize=TEXT, handletextpad=0.3
    )


def _figure(height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(INCHES, height), layout="constrained", dpi=DOTS)
    FigureCanvasAgg(figure)
    return figure
