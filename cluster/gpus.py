"""The GPUs of this machine, asked of NVIDIA's driver: light, without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU: the driver's name of it, and its memory in bytes."""

    name: str
    memory: int


def gpus_here() -> tuple[Gpu, ...]:
    """The GPUs that the driver shows; none where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        return tuple(
            Gpu(name=str(pynvml.nvmlDeviceGetName(one)), memory=int(pynvml.nvmlDeviceGetMemoryInfo(one).total))
            for one in handles
        )
    except pynvml.NVMLError:
        return ()
