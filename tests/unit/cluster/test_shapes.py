"""Shapes of clusters, as a user names them."""

import pytest

from cluster.errors import UserError
from cluster.shapes import GPUS, parse_shape


def test_a_shape_is_a_gpu_and_a_number():
    shape = parse_shape("H100x64")
    assert (shape.gpu, shape.gpus, shape.nodes) == (GPUS["h100"], 64, 8)
    assert parse_shape("rtx4090x2").gpus_per_node == 2
    assert parse_shape("a100-40x12", gpus_per_node=4).nodes == 3
    assert parse_shape("v100x8", gpu_memory_gb=16).gpu.memory_gb == 16


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("h1000x8", "'h1000' is no GPU that is known: did you mean h100? Known: a100-40, "),
        ("a100x8", "did you mean a100-40 or a100-80?"),
        ("tpux8", "'tpu' is no GPU that is known: Known: "),
        ("h100", "'h100' says not how many: write h100x8 for eight of them"),
        ("rtx4090", "'rtx4090' says not how many"),
        ("h100x0", "'h100x0' says not how many"),
    ],
)
def test_what_is_not_understood_is_told_with_what_would_be(text: str, expected: str):
    with pytest.raises(UserError) as told:
        parse_shape(text)
    assert expected in str(told.value)
