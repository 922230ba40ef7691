"""Cluster shapes: how many GPUs of which model, and what joins them. Light: nothing is asked of any machine."""

from __future__ import annotations

import difflib
import itertools
import re
from dataclasses import dataclass, replace

from cluster.errors import UserError


@dataclass(frozen=True, kw_only=True)
class GpuModel:
    """A GPU as its data sheet has it. TFLOP/s are those of dense matrices: half of what sheets print with sparsity."""

    title: str
    memory_gb: float
    """In 10^9 bytes."""
    half_tflops: float
    """bf16 (or fp16) products, summed in fp32."""
    fp32_tflops: float
    """fp32 without TF32, which torch does not use unless it is told to."""
    has_bf16: bool = True
    networked: bool = False
    """Whether machines of eight come with a network for training: 50 GB/s and more by EFA, InfiniBand or RoCE."""


GPUS = {
    # NVIDIA A100 Tensor Core GPU data sheet (SXM).
    "a100-40": GpuModel(title="A100 40 GB", memory_gb=40, half_tflops=312, fp32_tflops=19.5, networked=True),
    "a100-80": GpuModel(title="A100 80 GB", memory_gb=80, half_tflops=312, fp32_tflops=19.5, networked=True),
    # NVIDIA H100 Tensor Core GPU data sheet (SXM): 1,979 with sparsity.
    "h100": GpuModel(title="H100 SXM", memory_gb=80, half_tflops=989, fp32_tflops=67, networked=True),
    # NVIDIA H200 Tensor Core GPU data sheet (SXM).
    "h200": GpuModel(title="H200 SXM", memory_gb=141, half_tflops=989, fp32_tflops=67, networked=True),
    # NVIDIA DGX B200 data sheet, an eighth of its eight GPUs: 4,500 with sparsity; 1,440 GB of memory.
    "b200": GpuModel(title="B200", memory_gb=180, half_tflops=2250, fp32_tflops=75, networked=True),
    # NVIDIA L4 data sheet: 242 with sparsity.
    "l4": GpuModel(title="L4", memory_gb=24, half_tflops=121, fp32_tflops=30.3),
    # NVIDIA L40S data sheet: 733 with sparsity.
    "l40s": GpuModel(title="L40S", memory_gb=48, half_tflops=362, fp32_tflops=91.6),
    # NVIDIA V100 data sheet (SXM2, 32 GB): fp16 alone.
    "v100": GpuModel(title="V100 32 GB", memory_gb=32, half_tflops=125, fp32_tflops=15.7, has_bf16=False),
    # NVIDIA A10G data sheet: 140 with sparsity.
    "a10g": GpuModel(title="A10G", memory_gb=24, half_tflops=70, fp32_tflops=35),
    # NVIDIA Ada GPU architecture white paper, appendix A.
    "rtx4090": GpuModel(title="RTX 4090", memory_gb=24, half_tflops=165, fp32_tflops=82.6),
}
"""By the name that a shape is given with. Memory of another size is said beside the name."""


@dataclass(frozen=True, kw_only=True)
class ClusterShape:
    """GPUs of one model, in nodes that a network joins."""

    gpu: GpuModel
    gpus: int
    gpus_per_node: int = 8
    network_gbit: float | None = None
    """Gbit/s from each node to the others; None where it is not known."""
    bucket_mb_per_s: float | None = None
    """10^6 bytes a second from each node to object storage; None where it is not known."""
    read_mb_per_s: float | None = None
    """The same from storage to each node, where that is another rate."""

    @property
    def nodes(self) -> int:
        """Machines that hold the GPUs."""
        return -(-self.gpus // self.gpus_per_node)


def parse_shape(text: str, *, gpu_memory_gb: float | None = None, gpus_per_node: int | None = None) -> ClusterShape:
    """The shape that `h100x64` names: 64 GPUs of that model, eight in a node unless it is said otherwise.

    Raises UserError where it names no GPU that is known, or no number of them.
    """
    name, gpus = _parts(text)
    gpu = GPUS[name] if gpu_memory_gb is None else replace(GPUS[name], memory_gb=gpu_memory_gb)
    return ClusterShape(gpu=gpu, gpus=gpus, gpus_per_node=min(gpus, gpus_per_node or 8))


def gpu_of(device: str) -> GpuModel | None:
    """The model of a GPU that calls itself so, `NVIDIA A100-SXM4-80GB` for example; None where it is none of these.

    Its memory may be of another size.
    """
    words = re.findall(r"[a-z]+\d*[a-z]*|\d+", device.lower())
    names = {*words, *(left + right for left, right in itertools.pairwise(words))}
    return next((gpu for name, gpu in GPUS.items() if name.partition("-")[0] in names), None)


def _parts(text: str) -> tuple[str, int]:
    lowered = text.lower()
    if lowered in GPUS:
        raise UserError(f"'{text}' says not how many: write {lowered}x8 for eight of them")
    found = re.fullmatch(r"(.+)x(\d+)", lowered)
    name = found[1] if found else lowered
    if name not in GPUS:
        near = [known for known in GPUS if known.startswith(name)] or difflib.get_close_matches(name, GPUS, 1)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        known = f"expected one of {', '.join(GPUS)}, and a number: h100x8"
        raise UserError(f"'{name}' is no GPU that is known: {hint}{known}")
    if found is None or int(found[2]) == 0:
        raise UserError(f"'{text}' says not how many: write {name}x8 for eight of them")
    return name, int(found[2])
