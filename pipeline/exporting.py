"""`export`: a model in any format, from a checkpoint or from a finished stage, with a check that it is the same."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import UserError
from cluster.storage import Storage, open_storage
from pipeline.checkpoints import checkpoints, export
from pipeline.config import Workflow
from pipeline.outputs import read_recorded
from stages.models.formats.known import FOLDERS, FORMATS, SUFFIXES, Format
from stages.temporary import temporary_folder

if TYPE_CHECKING:
    from stages.models.formats.network import Network

ABOUT = (
    *("update", "images_seen", "averaged", "seed", "trained_on", "class_ids"),
    *("resampling", "imported", "objective"),
)
"""What travels with the weights beside the network's own description; addresses stay here."""


def export_model(
    storage: Storage,
    workflow_id: str,
    workflow: Workflow,
    to: str,
    *,
    format: str | None = None,
    stage: str | None = None,
    update: int | None = None,
    raw: bool = False,
    fast: bool = False,
    drop: bool = False,
) -> dict[str, Any]:
    """Write a model to `to`, a path or an address: of a file for npz and safetensors, of a folder for timm and hf.

    Which weights: see `pipeline.checkpoints.export`; of a stage without checkpoints, such as an import, its output.
    Where a format has no place for some arrays, they are named and refused, or left out with `drop`. Before anything
    appears, the file is loaded again, also by the library whose format it is, and logits are compared. Returns the
    description, with `parity` and `dropped`. Raises UserError; Damaged where stored bytes are not as promised.
    """
    chosen = _format(to, format)
    source = _stage(storage, workflow_id, workflow, stage, update)
    if chosen == "safetensors" and source is None:
        options: dict[str, Any] = {"stage": stage, "update": update, "raw": raw, "fast": fast}
        return {**export(storage, workflow_id, workflow, to, **options), "exported_as": "safetensors"}
    from stages.models.formats.files import write_network
    from stages.models.formats.parity import check
    from stages.models.formats.places import fitted

    with temporary_folder() as place:
        if source is None:
            file = str(place / "model.safetensors")
            about = export(storage, workflow_id, workflow, file, stage=stage, update=update, raw=raw, fast=fast)
            network = _network_of_file(Path(file), _with_resampling(about, workflow, stage))
        else:
            network, about = _network_of_output(storage, workflow_id, workflow, source)
        network, dropped = fitted(network, chosen, drop=drop)
        # By the name that it will have: timm and others look at it.
        path = place / "out" if chosen in FOLDERS else place / "out" / _name(to)
        (place / "out").mkdir()
        files = write_network(network, chosen, path)
        parity = check(network, path, chosen)
        if not parity.equal:
            raise UserError(
                f"the {chosen} file has other logits than the model, as {parity.compared_with} load it: they differ by "
                f"{parity.greatest_difference:.2e}; nothing was written"
            )
        _publish(files, to, as_folder=chosen in FOLDERS)
    return {**about, "exported_as": chosen, "dropped": list(dropped), "parity": asdict(parity)}


def _format(to: str, format: str | None) -> Format:
    said = format or SUFFIXES.get(Path(to).suffix)
    found: Format | None = next((known for known in FORMATS if known == said), None)
    if found is None:
        what = f"--format {format}" if format else f"TO {to} does not say the format: say it with --format"
        raise UserError(f"{what}: expected one of {', '.join(FORMATS)}")
    if found not in FOLDERS and SUFFIXES.get(Path(to).suffix) != found:
        raise UserError(f"TO {to}: expected a name that ends in .{found}")
    if found in FOLDERS and Path(to).suffix in SUFFIXES:
        raise UserError(f"TO {to}: {found} is a folder of several files: expected its name")
    return found


def _stage(storage: Storage, workflow_id: str, workflow: Workflow, stage: str | None, update: int | None) -> str | None:
    """The stage whose output is meant; None where it is a checkpoint."""
    with_checkpoints = {row.stage for row in checkpoints(storage, workflow_id, workflow)}
    if update is not None or stage in with_checkpoints or (stage is None and with_checkpoints):
        return None
    if stage is not None:
        # The errors of a stage that is none, or not done, are those of its output.
        return stage if workflow.stages.get(stage) is None or workflow.stages[stage].output == "model" else None
    makers = [name for name in workflow.order() if workflow.stages[name].output == "model"]
    return makers[-1] if makers else None


def _network_of_file(path: Path, about: dict[str, Any]) -> Network:
    """The network of a checkpoint's weights, as `pipeline.checkpoints.export` has just written them."""
    import safetensors.torch

    return _network(about, safetensors.torch.load_file(path))


def _network(about: dict[str, Any], state: dict[str, Any]) -> Network:
    from stages.models.config import model_config
    from stages.models.formats.network import Network

    # A network that predicts masked patches tells no classes apart, though its data set has some.
    classes = tuple(map(str, about["classes"])) if about["num_classes"] else None
    return Network(
        config=model_config(about["model"]),
        resolution=about["resolution"],
        num_classes=about["num_classes"],
        state=state,
        classes=classes,
        about={name: about[name] for name in ABOUT if name in about},
    )


def _with_resampling(about: dict[str, Any], workflow: Workflow, stage: str | None) -> dict[str, Any]:
    """With the mode in which a fine-tuning resampled position embeddings: whoever goes on may want the same."""
    mode = getattr(workflow.stages[stage], "resampling", None) if stage is not None else None
    return {**about, "resampling": mode} if mode is not None else about


def _network_of_output(
    storage: Storage, workflow_id: str, workflow: Workflow, stage: str
) -> tuple[Network, dict[str, Any]]:
    from stages.models.store import read_state

    output = read_recorded(storage, workflow_id, workflow, stage)
    meta = output.meta
    network = _network(meta, read_state(storage, output))
    about = {name: value for name, value in meta.items() if name not in ("metrics", "left_out")}
    return network, {**about, "checkpoint": f"{storage.url}/{output.prefix}"}


def _name(to: str) -> str:
    return to.rpartition("/")[2]


def _publish(files: list[Path], to: str, *, as_folder: bool) -> None:
    if "://" in to:
        root = to.rstrip("/") if as_folder else to.rpartition("/")[0]
    else:
        path = Path(to).absolute()
        if as_folder and path.is_file():
            raise UserError(f"TO {to}: expected a folder; it is a file")
        root = f"file://{path if as_folder else path.parent}"
    place = open_storage(root)
    for file in files:
        place.upload(file.name, file)
