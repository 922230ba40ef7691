"""A network from a file's arrays and from what is said beside them: the same for all formats and families."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from cluster.errors import UserError
from stages.models.config import AnyModel
from stages.models.formats.arrays import View, check, choose
from stages.models.formats.beside import Beside, Overrides
from stages.models.formats.detect import Recognised, Telltales, recognise_vit
from stages.models.formats.detect_bit import BitTelltales, recognise_bit
from stages.models.formats.known import Format
from stages.models.formats.network import Network, blank
from stages.models.formats.rules import Rule, inward, shapes
from stages.models.resnet_config import BitConfig


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was found in a file."""

    network: Network
    format: Format
    arrays: int
    """That were taken over, as the file has them."""
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    """What there is to know of it: what was assumed, and a last layer that is zero or not there."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a format has the networks of one family."""

    telltales: Telltales | BitTelltales
    rules: Callable[[AnyModel, bool], Iterable[Rule]]
    """Of a network, with its last layer or without."""


def assemble(
    format: Format,
    view: View,
    layout: Layout,
    beside: Beside,
    overrides: Overrides,
    left_out: tuple[str, ...] = (),
) -> Found:
    """The network whose arrays these are. `left_out` are those of the file that the view does not have.

    Raises UserError naming the file, and the array with its shape and the expected one, where they are none.
    """
    names = {view.own_name(name): name for name in view.shapes}
    dropped = choose(view.where, names, overrides.drop)
    view = view.without(names[name] for name in dropped)
    found = _recognise(view, layout, beside, overrides)
    view, config = found.view, found.config
    classes, count = _classes(view.where, found.classes, beside, overrides)
    ours = blank(config, found.resolution, count)
    rules = list(layout.rules(config, found.classes is not None))
    check(view, shapes(rules, ours, found.heads), family(config))
    state = inward(rules, view.read)
    notes = list(_assumed(found.assumed))
    if found.classes is None and count:
        state |= {name: torch.zeros(ours[name].shape) for name in ("head.weight", "head.bias")}
        notes.append("it has no last layer: one of zeros stands there, to be fine-tuned")
    elif found.classes is not None and not state["head.weight"].any():
        notes.append(
            "its last layer is all zeros, as in the files of ImageNet-21k: it classifies nothing until fine-tuned"
        )
    return Found(
        network=Network(
            config=config, resolution=found.resolution, num_classes=count, state=state, classes=classes,
            about=beside.about,
        ),
        format=format,
        arrays=len(view.shapes),
        left_out=(*dropped, *left_out),
        notes=tuple(notes),
    )  # fmt: skip


def _recognise(view: View, layout: Layout, beside: Beside, overrides: Overrides) -> Recognised:
    if isinstance(layout.telltales, BitTelltales):
        return recognise_bit(view, layout.telltales, beside, overrides)
    return recognise_vit(view, layout.telltales, beside, overrides)


def family(config: AnyModel) -> str:
    """What people call such networks."""
    return "ResNet" if isinstance(config, BitConfig) else "Vision Transformer"


def _classes(where: str, found: int | None, beside: Beside, overrides: Overrides) -> tuple[tuple[str, ...] | None, int]:
    """Names and number of the classes. Raises UserError where they are not as many as the last layer has.

    One of our own descriptions may say that there are none; of another file without a last layer, one is to be made.
    """
    names = beside.classes if overrides.class_names is None else overrides.class_names
    if found is None and beside.num_classes == 0 and overrides.class_names is None:
        return None, 0
    count = found if found is not None else (len(names) if names else 1)
    if found is not None and beside.num_classes not in (None, found):
        raise UserError(f"{where}: is said to have {beside.num_classes} classes, and its last layer has {found}")
    if names is not None and len(names) != count:
        raise UserError(f"{where}: {len(names)} names of classes are given, and its last layer has {count}")
    return names, count


def _assumed(assumed: dict[str, object]) -> Iterable[str]:
    if assumed:
        listed = ", ".join(f"{name}={value}" for name, value in assumed.items())
        yield f"nothing says so, and it is usual for such files: {listed}"
