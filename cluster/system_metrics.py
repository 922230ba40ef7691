"""How busy this machine is, in the names and units of MLflow's own system metrics, so that its page knows them.

All of it is of the machine, whoever uses it; in a container without limits of its own that is the host.
"""

from __future__ import annotations

import os
from types import ModuleType

import psutil

MEGABYTE = 1e6


class SystemMetrics:
    """Samples of one machine. Traffic is counted from the first one on, the processors' load since the last one."""

    def __init__(self) -> None:
        self._gpus = _nvml()
        self._network = psutil.net_io_counters()
        # The first answer is of no interval.
        psutil.cpu_percent()

    def sample(self) -> dict[str, float]:
        """Values by name, for example `cpu_utilization_percentage` and `gpu_0_utilization_percentage`."""
        memory, disk, network = psutil.virtual_memory(), psutil.disk_usage(os.sep), psutil.net_io_counters()
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / MEGABYTE,
            "disk_available_megabytes": disk.free / MEGABYTE,
        }
        # A machine without any network interface has no counters.
        if network is not None and self._network is not None:
            found["network_receive_megabytes"] = (network.bytes_recv - self._network.bytes_recv) / MEGABYTE
            found["network_transmit_megabytes"] = (network.bytes_sent - self._network.bytes_sent) / MEGABYTE
        if self._gpus is not None:
            found |= gpus(self._gpus)
        return found


def gpus(nvml: ModuleType) -> dict[str, float]:
    """Of each of the machine's GPUs what its driver tells; what one does not tell is left out."""
    found: dict[str, float] = {}
    for number in range(nvml.nvmlDeviceGetCount()):
        try:
            device = nvml.nvmlDeviceGetHandleByIndex(number)
            memory = nvml.nvmlDeviceGetMemoryInfo(device)
            found[f"gpu_{number}_memory_usage_percentage"] = 100 * memory.used / memory.total
            found[f"gpu_{number}_memory_usage_megabytes"] = memory.used / MEGABYTE
            found[f"gpu_{number}_utilization_percentage"] = float(nvml.nvmlDeviceGetUtilizationRates(device).gpu)
            watts = nvml.nvmlDeviceGetPowerUsage(device) / 1000
            found[f"gpu_{number}_power_usage_watts"] = watts
            limit = nvml.nvmlDeviceGetEnforcedPowerLimit(device) / 1000
            found[f"gpu_{number}_power_usage_percentage"] = 100 * watts / limit
        except nvml.NVMLError:
            # Parts of a GPU have no power of their own, for example.
            continue
    return found


def _nvml() -> ModuleType | None:
    """NVIDIA's library, once it has found the driver; None where there is none."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml
