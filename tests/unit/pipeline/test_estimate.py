"""What a plan says of memory, time and money, against figures by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import UserError
from cluster.shapes import ClusterShape, parse_shape
from cluster.storage import Storage, open_storage
from pipeline.config import Workflow
from pipeline.display_estimate import _lines
from pipeline.estimate import Estimate, Terms, estimate
from pipeline.estimate_failures import COPY_BYTES_PER_S
from pipeline.estimate_reading import Images
from pipeline.head import HeadDocument
from pipeline.plan import PlannedStage, Question, plan
from pipeline.record import EventLog, Record, mark, write_record
from stages.data.order import Order
from stages.finetune.config import FinetuneConfig
from stages.ingest.config import IngestConfig
from stages.metrics import Point
from stages.models.config import ModelConfig
from stages.pretrain.config import PretrainConfig
from stages.training.memory import Network

LARGE = ModelConfig(variant="L", patch_size=16)
DAY = 86400


def pretrain(**fields) -> PretrainConfig:
    given = {"updates": 1000, "global_batch": 4096, "workers": 64, "gpus_per_worker": 1, "precision": "bf16", **fields}
    return PretrainConfig.model_validate({"data": "ingest", "model": LARGE, **given})


def of(shape: ClusterShape | str = "h100x64", terms: Terms | None = None, updates: int = 1000, **fields) -> Estimate:
    config = pretrain(**fields)
    network = Network(model=config.model, resolution=config.resolution, num_classes=1000)
    shape = parse_shape(shape) if isinstance(shape, str) else shape
    return estimate(config, network, updates, shape, terms or Terms(efficiency=0.5))


def connected(**rates: float) -> ClusterShape:
    shape = parse_shape("h100x64")
    return ClusterShape(gpu=shape.gpu, gpus=64, **rates)


def test_speed_time_and_money_by_hand():
    found = of(terms=Terms(efficiency=0.5, price=2.0))
    # 61.55 G multiply-adds an image (`vit_jax`), six operations each; 64 GPUs at half of 989 TFLOP/s.
    assert found.images_per_s == pytest.approx(64 * 0.5 * 989e12 / (6 * 61.55e9), rel=1e-3)
    assert found.days == pytest.approx(1000 * 4096 / found.images_per_s / DAY)
    assert found.device_days == pytest.approx(64 * found.days)
    assert found.money == pytest.approx(found.device_days * 24 * 2.0)
    assert found.tpu_core_days == {"JFT-300M": 680, "ImageNet-21k": 230}


def test_checkpointing_computes_four_thirds():
    assert of(activation_checkpointing=True).update_seconds == pytest.approx(4 / 3 * of().update_seconds)


def test_fp32_has_the_fp32_rate():
    assert of(precision="fp32").images_per_s == pytest.approx(67 / 989 * of().images_per_s)


def test_the_network_can_be_the_limit():
    # A ring of eight nodes: with ZeRO 2 each sends 7/8 of the fp32 gradients twice, and of the bf16 weights, an update.
    expected = (2 * 4 + 2) * 7 / 8 * 304_326_632 * 8 / 1e9
    slow = of(connected(network_gbit=1), zero_stage=2)
    assert slow.network_seconds == pytest.approx(expected)
    assert slow.update_seconds == slow.network_seconds
    assert any("network between nodes is the limit" in warning for warning in slow.warnings)
    fast = of(connected(network_gbit=1600), zero_stage=2)
    assert fast.update_seconds == of().update_seconds
    assert of("h100x8").network_seconds is None


def test_a_notice_is_held_against_the_time_to_save():
    # 3.65 GB over eight nodes at 100 MB/s are 4.6 s, twice where another upload is under way.
    rate = connected(bucket_mb_per_s=100)
    found = of(rate, Terms(efficiency=0.5, notice=4))
    assert found.checkpoint_bytes == 3 * 4 * 304_326_632
    assert found.upload_seconds == pytest.approx(found.checkpoint_bytes / 8 / 1e8)
    (warning,) = found.warnings
    assert warning.startswith("4 s of notice are too short to save, which takes 9 s")
    assert of(rate, Terms(efficiency=0.5, notice=30)).warnings == []
    (unknown,) = of(terms=Terms(notice=30)).warnings
    assert "--bucket-mb-per-s would tell" in unknown


def test_failures_are_held_against_the_interval_between_checkpoints():
    # Eight machines, each of which fails once in 800 hours: one failure in 100 hours.
    rate, terms = connected(bucket_mb_per_s=100), Terms(efficiency=0.5, mtbf_hours=800)
    plain, found = of(rate), of(rate, terms, save_every=600).losses
    assert plain.losses is None
    assert found is not None
    assert plain.upload_seconds is not None
    assert found.between_failures == 100 * 3600
    # Half an interval, the upload and the restart each time, and the copies of 1/64 of the state.
    interval = 600 * plain.update_seconds
    # 64 notes are read, 16 at once, and five more requests take a tenth of a second each.
    assert found.commit_seconds == pytest.approx(0.9)
    copies = plain.checkpoint_bytes / 64 / COPY_BYTES_PER_S / interval
    each = interval / 2 + plain.upload_seconds + found.commit_seconds + found.restart_seconds
    assert found.lost == pytest.approx(copies + each / 360_000, rel=0.01)
    best = of(rate, terms, save_every=found.best_save_every).losses
    assert best is not None
    assert best.lost == found.best_lost <= found.lost


def test_an_interval_that_costs_much_is_warned_of():
    rate, terms = connected(bucket_mb_per_s=100), Terms(efficiency=0.5, mtbf_hours=80)
    (warning,) = of(rate, terms, save_every=100_000).warnings
    told = r"save_every=100000 loses \d\.\d% of the time to failures and checkpoints: save_every=\d+ would lose \d\.\d%"
    assert re.fullmatch(told, warning)
    assert of(rate, terms, save_every=1000).warnings == []


@pytest.mark.parametrize("streams", [1, 16, 20, 24, 64, 96, 128])
@pytest.mark.parametrize("gpus", [8, 16, 64])
def test_what_a_machine_reads_is_what_its_rows_are_of(streams: int, gpus: int):
    """Against the order itself: one epoch, whose shards are as long as a stream, so that each stream is its shard."""
    batch, rank_rows = 64, 64 // gpus * 8
    order = Order(counts=np.full(streams, 192), seed=0, streams=streams, window=8)
    numbers = np.arange(order.total)
    _, shards, _ = order.locate(numbers[numbers % batch < rank_rows])
    found = of(f"h100x{gpus}", global_batch=batch, input={"streams": streams})
    assert found.read_share == pytest.approx(len(np.unique(shards)) / streams)


def test_what_machines_read_is_told_with_what_makes_it_less():
    shown = dict(_lines(of()))["reading"]
    assert shown == (
        "each of 8 machines fetches 100.0% of the data set, again in each epoch unless its cache holds that much; "
        "12.5% with input.streams=4096 and no mixup"
    )
    assert dict(_lines(of(input={"streams": 4096})))["reading"].endswith("fetches 12.5% of the data set in each epoch")
    assert of(input={"streams": 4096, "mixup": 0.2}).read_share == 1
    assert "reading" not in dict(_lines(of("h100x8", workers=8)))


def test_training_does_not_exceed_what_a_product_of_matrices_reached():
    terms = Terms(efficiency=0.5, ceiling=0.25)
    assert of(terms=terms).update_seconds == pytest.approx(2 * of().update_seconds)
    assert of(terms=terms).efficiency_from == "all that a product of matrices was measured to reach"
    assumed = of(terms=Terms(ceiling=0.65))
    assert (assumed.efficiency, assumed.efficiency_from) == (0.4, "assumed")


def first(shape: ClusterShape, images: Images | None, updates: int = 1000, **fields) -> Estimate:
    config = pretrain(**fields)
    network = Network(model=config.model, resolution=config.resolution, num_classes=1000)
    return estimate(config, network, updates, shape, Terms(efficiency=0.5), images)


def test_the_first_epoch_is_fetched_by_each_machine():
    images = Images(count=409_600, image_bytes=100_000, source="stated")
    found = first(connected(bucket_mb_per_s=1000), images, input={"cache_gigabytes": 41})
    own = found.first_epoch
    assert own is not None
    # With 16 streams 41 GB come to each machine at 1 GB/s, and 100 updates train on them.
    assert (own.fetched_bytes, own.fetch_seconds) == (40.96e9, 40.96)
    assert own.train_seconds == pytest.approx(100 * found.update_seconds)
    (warning,) = found.warnings
    assert warning == (
        "the first epoch waits for storage: to fetch its images takes 41.0 s, to train on them 4.8 s: 36.2 s that "
        "`time` leaves out"
    )
    assert dict(_lines(found))["first epoch"] == (
        "41.0 GB to each machine in 41.0 s, trained on in 4.8 s; 100 kB an image, stated"
    )
    eighth = first(connected(bucket_mb_per_s=1000), images, input={"streams": 4096}).first_epoch
    assert eighth is not None
    assert eighth.fetch_seconds == pytest.approx(40.96 / 8)
    # To read is not to write.
    assert first(connected(bucket_mb_per_s=1000, read_mb_per_s=10_000), images).warnings == []
    assert first(connected(bucket_mb_per_s=1000), None).first_epoch is None
    assert first(connected(), images).first_epoch is None


def test_what_the_cache_does_not_keep_is_fetched_in_each_epoch():
    images = Images(count=409_600, image_bytes=100_000, source="stated")
    (warning,) = first(connected(bucket_mb_per_s=1000), images, input={"cache_gigabytes": 40}).warnings
    # Ten epochs of 36.2 s.
    assert warning == (
        "each epoch waits for storage: to fetch its images takes 41.0 s, to train on them 4.8 s, and the cache keeps "
        "40.0 GB of 41.0 GB: up to 6 min 02 s that `time` leaves out"
    )
    (once,) = first(connected(bucket_mb_per_s=1000), images, updates=50, input={"cache_gigabytes": 10}).warnings
    # Half an epoch is all that there is.
    assert once.startswith(
        "the first epoch waits for storage: to fetch its images takes 20.5 s, to train on them 2.4 s"
    )
    samples = first(connected(bucket_mb_per_s=1000), images, input={"cache_gigabytes": 41, "fetch": "samples"})
    assert samples.warnings[0].startswith("each epoch waits for storage")


def test_gpus_that_the_workers_do_not_ask_for_stand_idle():
    whole, half = of("h100x64"), of("h100x64", workers=32)
    assert (whole.gpus, half.gpus, half.idle_gpus) == (64, 32, 32)
    assert half.micro_batch == 2 * whole.micro_batch
    assert half.days == pytest.approx(2 * whole.days, rel=0.2)
    assert whole.warnings == []
    assert half.warnings[0] == "32 of 64 GPUs idle: workers=32 asks for no more"


def test_what_does_not_fit_comes_with_what_would():
    found = of("a10gx8", workers=8)
    assert not found.chosen.fits
    assert [row.fits for row in found.rows if row.activation_checkpointing] == [True] * 3
    assert found.moves[0].startswith("micro_batch=128 (")
    (warning,) = found.warnings
    assert warning.startswith(
        f"does not fit: {found.chosen.memory.total / 1e9:.1f} GB of 22.5 GB: try micro_batch=128 ("
    )
    (hopeless,) = of(ClusterShape(gpu=parse_shape("l4x1", gpu_memory_gb=2).gpu, gpus=8), workers=8).warnings
    assert "no setting makes it fit" in hopeless


def test_gpus_that_do_not_divide_the_batch_idle_and_are_paid_for():
    found = of("h100x12", global_batch=64, workers=8)
    assert (found.gpus, found.idle_gpus) == (8, 4)
    assert found.device_days == pytest.approx(12 * found.days)
    assert "4 of 12 GPUs idle" in found.warnings[0]


def test_bf16_on_a_gpu_without_it_is_told():
    assert any("use precision=fp16" in warning for warning in of("v100x64").warnings)
    assert {row.zero_stage for row in of().rows} == {1, 2, 3}
    assert {row.zero_stage for row in of(precision="fp32").rows} == {0, 1, 2, 3}


# In a workflow


def workflow(**fields) -> Workflow:
    stages = {
        "ingest": IngestConfig.model_validate({"source": {"kind": "digits"}}),
        "pretrain": pretrain(**fields),
        "finetune": FinetuneConfig.model_validate({"data": "ingest", "from": "pretrain", "updates": 500}),
    }
    return Workflow(name="mine", stages=stages)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(f"file://{tmp_path}/root")


def planned(storage: Storage, workflow: Workflow, **question) -> dict[str, PlannedStage]:
    return {stage.name: stage for stage in plan(storage, workflow, Question(**question))}


def test_sizes_are_stated_where_the_data_set_is_not_there_yet(storage: Storage):
    shape = parse_shape("h100x8")
    nothing = planned(storage, workflow(updates=None, epochs=14), shape=shape)["pretrain"]
    assert (nothing.work, nothing.estimate) == ({}, None)
    assert nothing.unknown == "'ingest' is not done: --images and --classes would tell how large this is"
    assert "--classes would" in planned(storage, workflow(), shape=shape)["pretrain"].unknown
    known = planned(storage, workflow(updates=None, epochs=14), shape=shape, images=303_000_000, classes=1000)
    assert known["pretrain"].work["exaflops"] == pytest.approx(1567, rel=1e-3)
    assert known["finetune"].estimate is not None
    # The paper's core-days are those of its pre-training.
    assert known["finetune"].estimate.tpu_core_days == {}


def test_the_size_of_images_is_stated_or_assumed_where_the_data_set_is_not_there_yet(storage: Storage):
    def asked(**question) -> tuple[float, str]:
        shape = connected(bucket_mb_per_s=1000)
        found = planned(storage, workflow(), shape=shape, images=1000, classes=10, **question)["pretrain"].estimate
        assert found is not None
        assert found.first_epoch is not None
        return found.first_epoch.image_bytes, found.first_epoch.image_bytes_from

    assert asked() == (110_000, "assumed")
    assert asked(image_bytes=500.0) == (500, "stated")


def test_a_source_that_is_elsewhere_keeps_nobody_from_planning(storage: Storage):
    stages = {
        "ingest": IngestConfig.model_validate({"source": {"kind": "folder", "path": "/nowhere"}}),
        "pretrain": pretrain(),
    }
    with pytest.raises(UserError, match="/nowhere is not a folder"):
        planned(storage, Workflow(name="mine", stages=stages))
    found = planned(storage, Workflow(name="mine", stages=stages), images=1000, classes=10)
    assert found["ingest"].why == ["/nowhere is not a folder: path must hold a folder of images for each class"]
    assert found["pretrain"].work["updates"] == 1000


def test_an_average_that_is_mostly_the_beginning_is_told(storage: Storage):
    short = planned(storage, workflow(polyak_decay=0.9999), classes=10)["pretrain"]
    (warning,) = short.warnings
    assert warning == (
        "polyak_decay=0.9999: after 1,000 updates 90% of the average is what training began with: 0.997 leaves 5%"
    )
    assert planned(storage, workflow(polyak_decay=0.997), classes=10)["pretrain"].warnings == []


def test_dropout_is_told(storage: Storage):
    found = planned(storage, workflow(model=LARGE.model_copy(update={"dropout": 0.1})), classes=10)["pretrain"]
    assert found.warnings == ["dropout=0.1: its masks vary with the number of workers"]


def test_a_rate_for_another_batch_is_told_with_what_the_rules_would_make_of_it(storage: Storage):
    def told(**fields):
        config = workflow(lr=0.001, global_batch=1024, **fields)
        return planned(storage, config, classes=10)["pretrain"].warnings

    assert told() == told(lr_batch=1024) == []
    at = "global_batch=1,024, and lr=0.001 is for 4,096: "
    assert told(lr_batch=4096) == [at + "with lr_scale, linear makes it 0.00025 and sqrt makes it 0.0005"]
    assert told(lr_batch=4096, lr_scale="sqrt") == [at + "lr_scale=sqrt makes it 0.0005"]


def test_the_efficiency_of_the_newest_run_on_gpus_is_taken(storage: Storage):
    shape = parse_shape("h100x8")
    assumed = planned(storage, workflow(), shape=shape, classes=10)["pretrain"].estimate
    assert assumed is not None
    assert (assumed.efficiency, assumed.efficiency_from) == (0.4, "assumed")
    _finish(storage, "older", ended_ms=1, mfu=[0.3, 0.3], device="NVIDIA H100 80GB HBM3")
    _finish(storage, "newer", ended_ms=2, mfu=[0.1, 0.6, 0.62], device="NVIDIA A100-SXM4-80GB")
    _finish(storage, "small", ended_ms=3, mfu=[0.01], device="NVIDIA H100 80GB HBM3", variant="Ti")
    _finish(storage, "on-cpus", ended_ms=4, mfu=[0.9], device="Intel(R) Xeon(R) Processor")
    measured = planned(storage, workflow(), shape=shape, classes=10)["pretrain"].estimate
    assert measured is not None
    assert (measured.efficiency, measured.efficiency_from) == (
        pytest.approx(0.6 * 260 / 312),
        "measured by pretrain/newer",
    )
    stated = planned(storage, workflow(), shape=shape, classes=10, terms=Terms(efficiency=0.6))["pretrain"].estimate
    assert stated is not None
    assert (stated.efficiency, stated.efficiency_from) == (0.6, "stated")


def test_a_notice_is_held_against_the_time_that_saving_took_here(storage: Storage):
    asked = {"shape": parse_shape("h100x8"), "classes": 10}

    def told(notice: float) -> list[str]:
        found = planned(storage, workflow(), **asked, terms=Terms(efficiency=0.5, notice=notice))["pretrain"].estimate
        assert found is not None
        return [warning for warning in found.warnings if "notice" in warning]

    assert told(30)[0].endswith("--bucket-mb-per-s would tell")
    _finish(storage, "other", ended_ms=2, mfu=[], device="", variant="Ti", saved=[900.0])
    assert told(30)[0].endswith("--bucket-mb-per-s would tell")
    _finish(storage, "same", ended_ms=1, mfu=[], device="", saved=[19.0, 20.0, 28.0])
    (short,) = told(30)
    assert re.match(r"30 s of notice are too short to save, which takes 4\d s \(measured by pretrain/same\): ", short)
    assert told(60) == []


def _finish(
    storage: Storage, name: str, *, ended_ms: int, mfu: list[float], device: str, variant: str = "L",
    saved: Sequence[float] = (),
) -> None:  # fmt: skip
    """A finished pretraining in bf16 with these points, on devices whose matrix rate is 260 TFLOP/s."""
    folder, workflow_id = f"stages/pretrain/{name}", f"mine-20260101-00000{ended_ms}-0000"
    fields = {
        "optimizer": "adamw",
        "precision": "bf16",
        "model": {"variant": variant, "patch_size": 16},
        "resolution": 224,
    }
    nothing = {"inputs": {}, "tables": {}, "placement": {}, "identity": {"config": fields}}
    EventLog(storage, workflow_id).append("stage_started", "pretrain", folder=folder)
    mark(storage, workflow_id, "done")
    record = Record(
        kind="pretrain",
        fingerprint=name,
        attempt=1,
        metrics={"peak_tflops": 260.0},
        builds={"device": device},
        output_prefix="",
        output_digest="",
        started_ms=0,
        ended_ms=ended_ms,
        **nothing,
    )
    key = write_record(storage, folder, record)
    head = HeadDocument(owner="me", epoch=1, nonce="n", ttl_seconds=1, state="done", attempt=1, record=key)
    storage.write(f"{folder}/HEAD.json", head.body())
    points = [Point(name="train/mfu", value=value, step=step, time_ms=0) for step, value in enumerate(mfu)]
    points += [
        Point(name="train/checkpoint_seconds", value=value, step=step, time_ms=0) for step, value in enumerate(saved)
    ]
    body = "".join(json.dumps(vars(point)) + "\n" for point in points)
    storage.write(f"{folder}/attempts/1/metrics/000000.jsonl", body.encode())


def test_fewer_workers_take_no_more_images_at_once():
    elastic = pretrain(workers=[4, 64])
    assert [elastic.micro_batch_for(ranks) for ranks in (64, 16, 4)] == [64, 64, 64]
    assert pretrain(workers=[4, 64], micro_batch=32).micro_batch_for(4) == 32
    # A fixed number has all of its rows.
    assert pretrain(workers=4).micro_batch_for(4) == 1024


def test_what_predicts_masked_patches_counts_and_no_classes_are_asked_for(tmp_path):
    ingest = IngestConfig.model_validate({"source": {"kind": "digits"}})
    config = pretrain(updates=10, objective={"kind": "masked"})
    workflow = Workflow(name="masked", stages={"ingest": ingest, "pretrain": config})
    found = plan(open_storage(f"file://{tmp_path}"), workflow, Question(shape=parse_shape("h100x64"), images=1000))
    work = next(stage for stage in found if stage.name == "pretrain").work
    # Of ViT-L/16 without a head: the mask's embedding, and 512 colours for 98 of its 196 patches.
    body = Network(model=LARGE, resolution=224, num_classes=0)
    assert work["parameters"] == body.parameters + 1024 + 1025 * 512
    assert work["exaflops"] == pytest.approx(6 * (body.macs + 98 * 1024 * 512) * 40_960 / 1e18)
    assert work["classes"] == 0
