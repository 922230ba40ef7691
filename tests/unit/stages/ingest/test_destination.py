"""Tars at a destination: whose they are, and that nothing there is overwritten or taken for what it is not."""

import shutil
from dataclasses import replace

import pytest

from cluster.errors import UserError
from cluster.storage import open_storage
from stages.ingest.config import IngestConfig
from stages.ingest.run import run
from tests.unit.stages.ingest.pictures import NAMES, context, jpeg


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    for number in range(40):
        path = root / NAMES[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    return root


def config(photos, destination, **fields):
    source = {"kind": "folder", "path": str(photos)}
    return IngestConfig.model_validate({"source": source, "destination": destination, "samples_per_shard": 9, **fields})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_destination_is_one_stages_own(tmp_path, photos):
    one = f"file://{tmp_path}/one"
    first = context(tmp_path)
    output = run(config(photos, one), {}, first).output
    before = contents(tmp_path / "one")
    assert "train-000001.tar" in before
    other = replace(context(tmp_path / "other"), folder="stages/ingest/other")
    with pytest.raises(UserError, match=r"/one/ has the tars of another ingestion, stages/ingest/x, .*/one-2, or"):
        run(config(photos, f"{one}/", quality=50), {}, other)
    assert contents(tmp_path / "one") == before
    again = run(config(photos, f"{one}/"), {}, context(tmp_path, attempt=2)).output
    assert again.digest == output.digest
    shutil.rmtree(tmp_path / "one")
    run(config(photos, one, quality=50), {}, other)
    with pytest.raises(UserError, match="another ingestion, stages/ingest/other"):
        run(config(photos, one), {}, context(tmp_path, attempt=3))


def test_a_users_own_tars_are_never_overwritten(tmp_path, photos):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train-000000.tar").write_bytes(b"mine")
    (tmp_path / "mine" / "notes.txt").write_bytes(b"mine too")
    with pytest.raises(UserError, match=r"mine has train-000000\.tar, which no ingestion of this program owns"):
        run(config(photos, f"file://{tmp_path}/mine"), {}, context(tmp_path))
    assert contents(tmp_path / "mine") == {"train-000000.tar": b"mine", "notes.txt": b"mine too"}
    (tmp_path / "mine" / "train-000000.tar").rename(tmp_path / "mine" / "cats.tar")
    run(config(photos, f"file://{tmp_path}/mine"), {}, context(tmp_path, attempt=2))
    assert (tmp_path / "mine" / "cats.tar").read_bytes() == b"mine"


@pytest.mark.parametrize("where", ["destination", "the stage's folder"])
def test_an_output_is_in_place_where_all_tars_are_with_their_sizes(tmp_path, photos, where):
    destination = f"file://{tmp_path}/one" if where == "destination" else None
    tars = tmp_path / "one" if destination else tmp_path / "storage/stages/ingest/x/shards"
    place, asked = context(tmp_path), config(photos, destination)
    output = run(asked, {}, place).output
    assert asked.is_in_place(place.storage, output)
    for elsewhere in (f"file://{tmp_path}/two", f"file://{tmp_path}/one" if destination is None else None):
        assert not config(photos, elsewhere).is_in_place(place.storage, output)
    tar = tars / "train-000001.tar"
    body = tar.read_bytes()
    tar.write_bytes(body[:-1])
    assert not asked.is_in_place(place.storage, output)
    tar.unlink()
    assert not asked.is_in_place(place.storage, output)
    assert run(asked, {}, context(tmp_path, attempt=2)).output.digest == output.digest
    assert tar.read_bytes() == body
    assert asked.is_in_place(place.storage, output)
    open_storage(place.storage.url).delete(output.key("tables/train.safetensors"))
    assert not asked.is_in_place(place.storage, output)


def test_a_stage_that_is_made_anew_may_write_the_same_tars_again(tmp_path, photos):
    one = f"file://{tmp_path}/one"
    output = run(config(photos, one), {}, context(tmp_path)).output
    before = contents(tmp_path / "one")
    anew = replace(context(tmp_path), folder="stages/ingest/x.0123abcd-1")
    assert run(config(photos, one), {}, anew).output.digest == output.digest
    assert contents(tmp_path / "one") == before
