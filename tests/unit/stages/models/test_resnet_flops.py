"""Counts of hybrids and ResNets by formula: against the real networks, and against published figures."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stages.models.build import build
from stages.models.config import ModelConfig, model_config
from stages.models.flops import forward_macs, parameter_count
from stages.models.resnet_flops import bottlenecks, root_kernels
from tests.unit.stages.models.test_flops import JFT_IMAGES

JFT_CLASSES = 18_291
SMALL = {"width": 64, "depth": 2, "mlp_dim": 128, "num_heads": 2}
ODD = {**SMALL, "patch_size": 3, "in_channels": 4, "stem": {"blocks": (2, 1), "width_factor": 2}}


@pytest.mark.parametrize(
    ("given", "resolution"),
    [
        ("R+Ti/16", 96),
        ("R26+S/32", 64),
        ("R50+B/16", 64),
        ({"variant": "R50+L/32", "head": "mlp_tanh", "pool": "average"}, 64),
        (ODD, 72),
        ("R50x1", 96),
        ("R101x3", 75),
        ({"blocks": (1, 2, 1, 2), "width_factor": 2, "in_channels": 1}, 33),
    ],
    ids=str,
)
def test_counts_are_those_of_the_real_network(given, resolution):
    config = model_config(given)
    with torch.device("meta"):
        model = build(config, resolution, 100)
        images = torch.zeros(1, config.in_channels, resolution, resolution)
    assert parameter_count(config, resolution, 100) == sum(parameter.numel() for parameter in model.parameters())
    with FlopCounterMode(display=False) as counter:
        model(images)
    assert counter.get_total_flops() == 2 * forward_macs(config, resolution, 100)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 224 pixels and 1,000 classes: `vit_jax/models_test.py`, lines 25 to 54.
        ("R+Ti/16", 6_337_704),
        ("R26+S/32", 36_431_912),
        ("R26+B/32", 101_383_976),
        ("R50+B/16", 98_659_112),
        ("R50+L/32", 328_994_856),
    ],
)
def test_parameters_of_hybrids_are_those_of_the_papers_code(name, expected):
    assert parameter_count(model_config(name), 224, 1000) == expected


@pytest.mark.parametrize(
    ("name", "millions"),
    [("R50x1", 23.5), ("R50x3", 211.2), ("R101x1", 42.5), ("R101x3", 381.8), ("R152x2", 232.2), ("R152x4", 928.3)],
)
def test_parameters_of_resnets_are_bits(name, millions):
    # Without the last layer: counted on `bit_pytorch/models.py`.
    assert round(parameter_count(model_config(name), 224, 0) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("name", "epochs", "exaflops", "tolerance"),
    [
        # But for two of the paper's figures: 55, which no formula here makes, and 859, which is not half of its 1668.
        # Its ResNets are all 3 to 5 % below these: what it counts it does not say.
        ("B/32", 7, 55, 0.025),
        ("B/16", 7, 224, 0.01),
        ("L/32", 7, 196, 0.01),
        ("L/16", 7, 783, 0.01),
        ("L/16", 14, 1567, 0.01),
        ("H/14", 14, 4262, 0.01),
        ("R50x1", 7, 50, 0.05),
        ("R50x2", 7, 199, 0.05),
        ("R101x1", 7, 96, 0.05),
        ("R152x1", 7, 141, 0.05),
        ("R152x2", 7, 563, 0.05),
        ("R152x2", 14, 1126, 0.05),
        ("R200x3", 14, 3306, 0.05),
        ("R50+B/32", 7, 106, 0.02),
        ("R50+B/16", 7, 274, 0.01),
        ("R50+L/32", 7, 246, 0.01),
        ("R50+L/16", 7, 859, 0.03),
        ("R50+L/16", 14, 1668, 0.01),
    ],
)
def test_pretraining_costs_what_the_papers_table_6_says(name, epochs, exaflops, tolerance):
    found = 6 * forward_macs(model_config(name), 224, JFT_CLASSES) * JFT_IMAGES * epochs / 1e18
    assert found == pytest.approx(exaflops, rel=tolerance)


def padded_macs(size: int, kernel: int, stride: int) -> int:
    """Products with the padding of a convolution of one channel over a square map, which is halved by a stride of 2."""
    after = -(-size // stride)
    before = max((after - 1) * stride + kernel - size, 0) // 2
    places = [place * stride - before + tap for place in range(after) for tap in range(kernel)]
    return (after * kernel) ** 2 - sum(0 <= place < size for place in places) ** 2


@pytest.mark.parametrize(
    ("name", "epochs", "exaflops"),
    [
        ("R50x1", 7, 50), ("R50x2", 7, 199), ("R101x1", 7, 96), ("R152x1", 7, 141), ("R152x2", 7, 563),
        ("R152x2", 14, 1126), ("R200x3", 14, 3306), ("R50+B/32", 7, 106), ("R50+B/16", 7, 274), ("R50+L/32", 7, 246),
        ("R50+L/16", 14, 1668),
    ],
)  # fmt: skip
def test_without_products_with_padding_resnets_cost_what_the_paper_says(name, epochs, exaflops):
    config = model_config(name)
    body = config.stem if isinstance(config, ModelConfig) else config
    assert body is not None
    padded = root_kernels(body, 3) // 49 * padded_macs(224, 7, 2)
    for unit in bottlenecks(body.blocks, body.width_factor, 224):
        padded += unit.width**2 * padded_macs(unit.before, 3, unit.before // unit.after)
    counted = (forward_macs(config, 224, JFT_CLASSES) - padded) * 6 * JFT_IMAGES * epochs / 1e18
    # The best of what was tried (docs/recipes.md). With them it is up to 5 % more.
    assert counted == pytest.approx(exaflops, rel=0.014 if name == "R50x1" else 0.0075)


def test_counting_needs_no_torch():
    code = (
        "import sys; from stages.models.flops import forward_macs; from stages.models.config import model_config; "
        "forward_macs(model_config('R50+B/16'), 224, 1); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
