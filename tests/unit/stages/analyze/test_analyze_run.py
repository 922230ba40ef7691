"""The stage, without the runner, on the real digits."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from cluster.errors import UserError
from stages.analyze.config import AnalyzeConfig
from stages.analyze.figures import positions_figure
from stages.analyze.measured import measure
from stages.analyze.run import run, untrained
from stages.context import read_output
from stages.ingest.config import DigitsSource, IngestConfig
from stages.ingest.run import run as run_ingest
from stages.models.bit import BitResNet
from stages.models.initialize import initialize
from stages.models.resnet_config import BitConfig
from tests.unit.stages.models.outputs import commit_model, file_storage, random_images, random_model, stage_context

NAMES = {
    *("attention_distance.csv", "attention_distance.png", "attention_entropy.csv", "attention_entropy.png"),
    *("filters.csv", "filters.png", "positions.csv", "positions.png", "rollout.csv", "rollout.png"),
}


class Analysis:
    """Analyses of committed networks."""

    def __init__(self, folder):
        self.folder, self.count = folder, 0
        self.storage = file_storage(folder / "root")
        config = IngestConfig(source=DigitsSource(), samples_per_shard=500)
        self.dataset = run_ingest(config, {}, stage_context(self.storage, "stages/ingest/x")).output

    def run(self, model, *, seed=0, **fields):
        self.count += 1
        committed = commit_model(stage_context(self.storage, f"stages/pretrain/{self.count}"), model)
        cache = {"cache": str(self.folder / "cache")}
        given = {"data": "ingest", "from": "pretrain", "images": 12, "examples": 3, "threads": 1, "input": cache}
        config = AnalyzeConfig.model_validate({**given, **fields})
        context = replace(stage_context(self.storage, f"stages/analyze/{self.count}"), seed=seed)
        threads = torch.get_num_threads()
        try:
            return run(config, {"data": self.dataset, "model": committed}, context)
        finally:
            assert torch.get_num_threads() == threads

    def rows(self, result, name):
        return list(csv.DictReader(io.StringIO(self.storage.read(result.output.key(name)).decode())))


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    return Analysis(tmp_path_factory.mktemp("analyze"))


@pytest.fixture(scope="module")
def result(analysis):
    return analysis.run(random_model(0))


def test_every_figure_comes_with_its_numbers(analysis, result):
    output = read_output(analysis.storage, result.output.prefix)
    assert output.kind == AnalyzeConfig.output == "analysis"
    assert {entry["path"] for entry in output.manifest["files"]} == NAMES
    for name in NAMES:
        body = analysis.storage.read(output.key(name))
        if name.endswith(".png"):
            assert Image.open(io.BytesIO(body)).size[0] == 900
    distances = analysis.rows(result, "attention_distance.csv")
    assert len(distances) == len(analysis.rows(result, "attention_entropy.csv")) == 2 * 2 * 2


def test_means_of_the_heads_are_the_metrics(analysis, result):
    for name in ("distance", "entropy"):
        rows = analysis.rows(result, f"attention_{name}.csv")
        for which, before in (("trained", ""), ("untrained", "untrained/")):
            own = [float(row[name]) for row in rows if (row["which"], row["layer"]) == (which, "1")]
            assert result.metrics[f"{before}attention_{name}/layer_01"] == pytest.approx(np.mean(own), rel=2e-5)
    table = {(row["which"], row["layer"]): row for row in result.tables["analysis"]}
    assert set(table) == {(which, layer) for which in ("trained", "untrained") for layer in (0, 1)}
    assert table["trained", 0]["least"] <= table["trained", 0]["distance"] <= table["trained", 0]["greatest"]
    # Five tokens attend to at most all alike.
    assert table["trained", 1]["entropy"] == pytest.approx(table["trained", 1]["of_uniform"] * np.log(5), rel=2e-5)


def test_the_untrained_network_is_the_one_that_training_began_with(result):
    fresh, expected = untrained(random_model(0), 5), random_model(1)
    initialize(expected, 5)
    assert all(torch.equal(own, expected.state_dict()[name]) for name, own in fresh.state_dict().items())
    rows = {row["which"]: row["distance"] for row in result.tables["analysis"] if row["layer"] == 1}
    assert rows["trained"] != rows["untrained"]


def test_the_same_stage_makes_the_same_bytes(analysis, result):
    assert analysis.run(random_model(0)).output.manifest == result.output.manifest


def test_numbers_are_the_same_in_any_batches():
    model, images = random_model(0), (random_images(7, 8) * 127.5 + 127.5).byte().permute(0, 2, 3, 1)
    whole, parts = (measure(model, images, examples=5, batch=batch) for batch in (7, 2))
    for field in ("distance", "entropy", "rollout"):
        np.testing.assert_allclose(getattr(parts, field), getattr(whole, field), rtol=1e-4)
    assert whole.rollout.shape == (5, 2, 2)


def test_images_are_drawn_by_the_seed_and_the_network_alone_is_measured_where_asked(analysis, result):
    other = analysis.run(random_model(0), seed=1, untrained=False)
    assert {row["which"] for row in other.tables["analysis"]} == {"trained"}
    drawn = [own.output.meta["images"] for own in (result, other)]
    assert all(len(set(own)) == 12 for own in drawn)
    assert drawn[0] != drawn[1]
    shown = [int(row["image"]) for row in analysis.rows(result, "rollout.csv")]
    assert list(dict.fromkeys(shown)) == drawn[0][:3]


def test_a_figure_that_cannot_be_is_left_out_and_says_why_and_a_small_split_gives_all(analysis):
    found = analysis.run(random_model(0, position="none", pool="average"), images=5000, batch=256)
    assert found.metrics["images"] == analysis.dataset.meta["splits"]["test"]["count"]
    assert {entry["path"] for entry in found.output.manifest["files"]} == NAMES - {"positions.csv", "positions.png"}
    about = {row["figure"]: row["of"] for row in found.tables["figures"]}
    assert about["positions.png"].startswith("left out: ")
    assert "no class token" in about["rollout.png"]


def test_a_hybrid_is_measured_in_pixels_of_its_input(analysis):
    model = random_model(0, resolution=16, stem={"blocks": (1,)}, patch_size=1)
    with torch.no_grad():
        # Queries of zero attend to all alike.
        for block in model.blocks:
            block.attn.qkv.weight.zero_()
            block.attn.qkv.bias.zero_()
    found = analysis.run(model, untrained=False)
    grid = np.stack(np.mgrid[:4, :4], axis=-1).reshape(-1, 2) * 4.0
    expected = np.linalg.norm(grid[:, None] - grid[None], axis=-1).mean()
    assert [row["distance"] for row in found.tables["analysis"]] == pytest.approx([expected] * 2, rel=2e-5)
    assert [row["of_uniform"] for row in found.tables["analysis"]] == pytest.approx([1, 1])
    about = {row["figure"]: row["of"] for row in found.tables["figures"]}
    assert f"to all alike it is {expected:.2f}" in about["attention_distance.png"]


def test_large_grids_show_some_of_their_patches():
    similarity = np.eye(20 * 20)
    assert Image.open(io.BytesIO(positions_figure(similarity, (20, 20), "large"))).size[0] == 900


def test_what_cannot_be_looked_at_is_refused(analysis):
    with pytest.raises(UserError, match=r"has no split 'tests': it has .*test"):
        analysis.run(random_model(0), split="tests")
    with pytest.raises(UserError, match="the network of 'pretrain', is a ResNet, without attention: take a Vision"):
        analysis.run(BitResNet(BitConfig(blocks=(1, 1, 1, 1)), 32, 3))
    broken = random_model(0)
    with torch.no_grad():
        broken.blocks[1].norm1.bias[0] = torch.nan
    with pytest.raises(UserError, match="attention of layer 1 is not finite: look at the network's training"):
        analysis.run(broken)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"images": 4}, "examples=8 is more than images=4"), ({"images": 0}, "greater than or equal to 1")],
)
def test_settings_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        AnalyzeConfig.model_validate({"data": "ingest", "from": "pretrain", **fields})
