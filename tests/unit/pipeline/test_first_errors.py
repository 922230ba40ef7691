"""The mistakes of the first hour, made as newcomers make them: each is told in one message, without a traceback, with
the value, what was expected, and the next move, and ends with exit code 2."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cluster.local.processes import free_ports
from pipeline.beginning.writing import init
from tests.unit.pipeline.job_server import JobServer
from tests.unit.pipeline.test_cli import Answer, home, patchline

__all__ = ["home", "patchline"]

IMAGES = "ingest.source.path="
SHAPE = "a number: h100x8"
NOT_FOUND = (
    "Shipped workflows: digits, families, fashion, folder, positions, scaling, and rows of tables such as "
    "imagenet21k/b16 (docs/recipes.md)"
)

MISTAKES: dict[str, tuple[str, str, str, str]] = {
    # What was meant: the command, the value, what was expected, the next move.
    "a folder that is not there": (
        f"plan folder -o {IMAGES}phtos",
        "/phtos is not a folder",
        "a folder of images for each class",
        "path must hold",
    ),
    "an empty folder": (
        f"plan folder -o {IMAGES}empty",
        "/empty has no images to train on",
        "(bmp, gif, jfif, jpe, jpeg, jpg, pgm, png, ppm, tif, tiff, webp)",
        "put them into a folder for each class",
    ),
    "photos without folders of classes": (
        f"plan folder -o {IMAGES}loose",
        "/loose has no images to train on",
        "a folder for each class",
        "put them into",
    ),
    "test without train": (
        f"plan folder -o {IMAGES}split",
        "/split has test and val and no train",
        "put the training images into a folder of that name beside them",
        "where these are classes, give them other names",
    ),
    "one class, at init": (
        "init one --to new.yaml",
        "/one has one class",
        "expected at least two",
        "each in a folder of its own",
    ),
    "init over one's own file": ("init two --to mine.yaml", "--to mine.yaml", "name another file", "--force"),
    "init of what is no folder": (
        "init mine.yaml --to new.yaml",
        "mine.yaml: expected a folder of images for each class",
        "a table (.csv, .tsv, .jsonl, .parquet)",
        "or WebDataset tars such as",
    ),
    "init of nothing": (
        "init --to new.yaml",
        "no images are named",
        "expected a folder, a table",
        "patchline init photos",
    ),
    "a file that is not there": (
        "plan mine.yml",
        "no workflow file 'mine.yml'",
        "did you mean 'mine.yaml'",
        "`patchline init` writes a file for your images",
    ),
    "a recipe misspelt": (
        "plan digist",
        "no workflow file 'digist'; did you mean 'digits'?",
        NOT_FOUND,
        "`patchline init`",
    ),
    "the photos in place of the file": (
        "submit two",
        "two is a folder",
        "expected a workflow file",
        "`patchline init two` writes one",
    ),
    "a tab": (
        "plan tab.yaml",
        "tab.yaml:3: not readable as YAML: a tab",
        "expected spaces",
        "indented by spaces alone",
    ),
    "broken YAML": (
        "plan broken.yaml",
        "broken.yaml:4: not readable as YAML",
        "expected ',' or '}'",
        "look at the indentation, and for a missing colon, comma or bracket",
    ),
    "an empty file": (
        "plan nothing.yaml",
        "nothing.yaml: got nothing",
        "expected a mapping with the keys name and stages",
        "`patchline init` writes one to begin with",
    ),
    "stages that are not indented": (
        "plan flat.yaml",
        "flat.yaml: stages: got nothing",
        "expected stages by name",
        "each indented below `stages:`",
    ),
    "a field misspelt": (
        "plan field.yaml",
        "field.yaml:5: stages.pretrain.epoch",
        "unknown field",
        "did you mean 'epochs'?",
    ),
    "a word for a number": (
        "plan type.yaml",
        "type.yaml:5: stages.pretrain.global_batch: got 'many'",
        "expected a valid integer",
        "stages.pretrain.global_batch",
    ),
    "a stage misspelt in the file": (
        "plan stage.yaml",
        "stages.pretrain.data: got 'injest'",
        "expected one of the stages: ingest, pretrain",
        "did you mean 'ingest'?",
    ),
    "a kind that there is not": (
        "plan kind.yaml",
        "stages.pretraining.kind: got 'pretraining'",
        "expected one of ingest, mixture, subset, pretrain",
        "did you mean 'pretrain'?",
    ),
    "a stage misspelt in -o": (
        "plan digits -o pretraining.epochs=3",
        "'pretraining' is no stage of this workflow",
        "its stages: ingest, pretrain, finetune, fewshot",
        "did you mean 'pretrain'?",
    ),
    "-o without its stage": (
        "plan digits -o epochs=3",
        "'epochs' is no stage of this workflow",
        "its stages: ingest, pretrain",
        "did you mean pretrain.epochs or finetune.epochs?",
    ),
    "-o misspelt": ("plan digits -o pretrain.epocs=3", "pretrain.epocs", "unknown field", "did you mean 'epochs'?"),
    "-o without a value": (
        "plan digits -o pretrain.epochs",
        "-o pretrain.epochs",
        "expected a field and a value",
        "for example -o pretrain.epochs=3",
    ),
    "a resolution that patches do not fill": (
        "plan digits -o pretrain.resolution=18",
        "resolution=18",
        "is not a multiple of patch_size=4",
        "try 16 or 20",
    ),
    "heads that do not share the width": (
        "plan digits -o pretrain.model.num_heads=5",
        "num_heads=5",
        "width=64 is not a multiple",
        "try num_heads=4 or num_heads=8",
    ),
    "a model misspelt": (
        "plan digits -o pretrain.model=B16",
        "got 'B16'",
        "expected one of Ti, S, B, L, H, g, G",
        "with a patch size such as B/16",
    ),
    "workers that do not share the batch": (
        "plan digits -o pretrain.workers=3",
        "global_batch=128",
        "is not a multiple of workers=3",
        "try workers=2",
    ),
    "--on without a number": ("plan digits --on h100", "'h100'", "says not how many", "write h100x8"),
    "--on an unknown GPU": ("plan digits --on h101x8", "'h101' is no GPU that is known", SHAPE, "did you mean h100?"),
    "--on a number alone": ("plan digits --on 8", "'8' is no GPU that is known", "expected one of a100-40", SHAPE),
    "no stack": ("submit digits", "no Ray cluster", "give --address http://HOST:8265", "`patchline up`"),
    "no workflow yet": ("status", "no workflow in file://", "yet", "`patchline submit digits`"),
    "a root without file://": (
        "list --root /data/results",
        "root '/data/results'",
        "expected file:///FOLDER or s3://BUCKET/PREFIX",
        "file:///data/results",
    ),
    "a root that is a file": (
        "run digits --root file://{folder}/mine.yaml",
        "mine.yaml",
        "expected a folder of one's own",
        "name another place: --root, or PATCHLINE_HOME",
    ),
    "an address without http://": (
        "submit digits --address head:8265 --root file://{folder}/r --mlflow http://head:5000",
        "no Ray job server answers at head:8265",
        "expected an address such as",
        "http://HOST:8265",
    ),
    "a tracking server without http://": (
        "run digits --mlflow 127.0.0.1:5000",
        "--mlflow 127.0.0.1:5000",
        "expected the address of a server, http://HOST:5000",
        "try http://127.0.0.1:5000",
    ),
    "a bucket's name too short": (
        "list --root s3://b/x",
        "s3://b/x",
        "expected s3://BUCKET/PREFIX",
        "three letters or more",
    ),
    "a cluster without a root": (
        "submit digits --address http://head:8265",
        "http://head:8265 is not this machine's own stack",
        "name --root s3://BUCKET/PREFIX",
        "--mlflow http://HOST:PORT",
    ),
}

GOOD = "name: mine\nstages:\n  ingest: {source: {kind: digits}}\n"
FILES = {
    "mine.yaml": GOOD,
    "tab.yaml": "name: mine\nstages:\n\tingest: {source: {kind: digits}}\n",
    "broken.yaml": "name: mine\nstages:\n  ingest: {source: {kind digits}\n  fewshot: {data: ingest}\n",
    "nothing.yaml": "",
    "flat.yaml": "name: mine\nstages:\ningest: {source: {kind: digits}}\n",
    "field.yaml": f"{GOOD}  pretrain: {{data: ingest, model: S/16,\n    epoch: 3}}\n",
    "type.yaml": f"{GOOD}  pretrain: {{data: ingest, model: S/16, epochs: 3,\n    global_batch: many}}\n",
    "stage.yaml": f"{GOOD}  pretrain: {{data: injest, model: S/16, epochs: 3}}\n",
    "kind.yaml": f"{GOOD}  pretraining: {{data: ingest, model: S/16, epochs: 3}}\n",
}
PHOTOS = ("one/cat/1.png", "one/cat/2.png", "two/cat/1.png", "two/dog/1.png", "loose/1.png", "split/val/a/1.png")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A newcomer's folder, where one stands."""
    place = tmp_path / "work"
    for name in (*PHOTOS, "split/test/a/1.png"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(place / name)
    (place / "empty").mkdir()
    for name, text in FILES.items():
        (place / name).write_text(text)
    for name in ("PATCHLINE_ROOT", "MLFLOW_TRACKING_URI", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(place)
    return place


def told(answer: Answer, *parts: str) -> None:
    """One message with all of these, nothing else, and the exit code for what a user can mend."""
    assert answer.code == 2, answer
    # What stays here of one's environment is no mistake, and is said before.
    messages = [line for line in answer.error.splitlines() if not line.startswith("kept here: ")]
    assert (answer.out, len(messages)) == ("", 1), answer
    assert messages[0].startswith("error: "), answer
    for part in parts:
        assert part in messages[0], f"{part!r} is not in {messages[0]!r}"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_the_first_hour_is_told_with_value_expectation_and_next_move(patchline, folder: Path, mistake):
    command, value, expected, move = MISTAKES[mistake]
    before = sorted(folder.rglob("*"))
    told(patchline(*command.replace("{folder}", str(folder)).split()), value, expected, move)
    assert sorted(folder.rglob("*")) == before, "a mistake leaves nothing behind"


@pytest.mark.parametrize(
    ("arguments", "near"),
    [(["sumbit", "digits"], "Did you mean 'submit'?"), (["plan", "digits", "--overide", "x=1"], "--override")],
)
def test_a_command_or_an_option_misspelt_is_told_with_the_nearest(patchline, arguments, near):
    answer = patchline(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert near in answer.error
    assert "Traceback" not in answer.error


def test_a_bucket_without_credentials_is_told(patchline, folder, monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "none"))
    told(
        patchline("list", "--root", "s3://bucket/x"),
        "s3://bucket/x at AWS",
        "no credentials",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    )


def test_a_cluster_of_another_ray_is_told_before_anything_is_sent(patchline, folder):
    server = JobServer()
    server.ray = "2.9.0"
    with server.running():
        command = f"submit digits --address {server.url} --root file://{folder}/r --mlflow http://127.0.0.1:9"
        told(
            patchline(*command.split()),
            f"the cluster at {server.url} has Ray 2.9.0",
            "this patchline needs Ray",
            "give its machines another Ray, or submit with the patchline that goes with it",
        )
    assert server.submitted == []
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    told(
        patchline(
            "submit", "digits", "--address", nowhere, "--root", f"file://{folder}/r", "--mlflow", "http://h:5000"
        ),
        f"no Ray job server answers at {nowhere}",
        "expected an address such as http://HOST:8265",
        "Connection refused",
    )


def test_in_a_folder_with_a_package_of_our_names_it_is_told_which_to_rename(tmp_path):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "__init__.py").touch()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    code = "import pipeline.cli; pipeline.cli.main()"
    asked = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    told(
        Answer(asked.returncode, asked.stdout, asked.stderr),
        f"{tmp_path}/stages/__init__.py",
        "would be imported in place of patchline's own package 'stages'",
        "rename it",
    )


@pytest.mark.parametrize(
    ("name", "override", "value", "expected", "move"),
    [
        (
            "one",
            [],
            "data: 'ingest' has one class to train on, cat",
            "expected two or more, as folders beside each other",
            "or objective: masked",
        ),
        (
            "two",
            ["pretrain.gpus_per_worker=1"],
            "gpus_per_worker=1",
            "worker 0 of this machine finds 0 GPUs",
            "set it to 0 to train on CPUs",
        ),
        ("bad", [], "images are bad", "no image that can be read", "max_bad"),
    ],
)
def test_what_only_shows_while_it_runs_ends_the_workflow_without_a_traceback(
    patchline, folder: Path, name, override, value, expected, move
):
    for number in range(4):
        for kind in ("cat", "dog"):
            (folder / "bad" / kind).mkdir(parents=True, exist_ok=True)
            (folder / "bad" / kind / f"{number}.png").write_bytes(b"no image")
    overrides = [f"{IMAGES}{name}", "pretrain.workers=0", "finetune.workers=0", "pretrain.epochs=1", *override]
    answer = patchline("run", "folder", *(word for one in overrides for word in ("-o", one)))
    assert answer.code == 1
    assert "Traceback" not in answer.out + answer.error
    words = re.sub(r"[\s│]+", " ", answer.out)
    for part in (value, expected, move):
        assert part in words, words


def test_a_workflow_that_is_done_is_resumed_by_looking_alone(patchline, folder: Path):
    assert patchline("run", "mine.yaml").code == 0
    answer = patchline("resume", "--foreground")
    assert (answer.code, "Traceback" in answer.error) == (0, False)
    told(patchline("status", "mine-x"), "no single workflow 'mine-x'", "none matches", "`patchline list` shows them")


def test_the_file_that_init_writes_meets_none_of_this(patchline, folder: Path):
    init("two", folder / "new.yaml")
    assert patchline("plan", "new.yaml").code == 0
