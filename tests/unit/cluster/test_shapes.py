from __future__ import annotations

import pytest

from cluster.shapes import GPUS, gpu_of


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100 80GB PCIe", "a100-40"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA A10G", "a10g"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 3090", None),
        ("Intel(R) Xeon(R) Platinum 8488C", None),
        ("", None),
    ],
)
def test_gpus_by_what_they_call_themselves(device, name):
    assert gpu_of(device) == (GPUS[name] if name else None)
