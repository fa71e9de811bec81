"""What a rank's device does: how long it works, how busy, full and hot a GPU is. Without a GPU a clock does."""

import ctypes
import math
import time
from functools import cache
from typing import Any, NamedTuple

import torch

SENSOR_OF_THE_GPU, CLOCK_OF_THE_CORES = 0, 1  # NVML_TEMPERATURE_GPU, NVML_CLOCK_SM


class Stopwatch:
    """`with stopwatch:` adds up the time of what is done inside on this process's device, and holds nothing up."""

    def __init__(self) -> None:
        self._seconds, self._begun = 0.0, 0.0
        self._events: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        self._begun = time.perf_counter()
        if torch.cuda.is_initialized():
            self._events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self._events[-1][0].record()

    def __exit__(self, *_: object) -> None:
        if torch.cuda.is_initialized():
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._begun

    def taken_s(self) -> float:
        """Seconds since it was last asked. On a GPU this waits for what was begun."""
        if self._events:
            self._events[-1][1].synchronize()
            self._seconds += sum(begin.elapsed_time(end) for begin, end in self._events) / 1e3
        taken, self._seconds = self._seconds, 0.0
        self._events.clear()
        return taken


class Gpu(NamedTuple):
    """Of this process's GPU: share of the time that it computes, memory in use by all processes and in all, degrees C, MHz.

    NaN is not known, as without a GPU, or where its driver does not say.
    """

    use: float = math.nan
    memory_bytes: float = math.nan
    memory_limit_bytes: float = math.nan
    temperature_c: float = math.nan
    clock_mhz: float = math.nan


def gpu() -> Gpu:
    """How this process's GPU is at this moment."""
    if not torch.cuda.is_initialized():
        return Gpu()
    free, limit = torch.cuda.mem_get_info()
    driver = _driver(f"GPU-{torch.cuda.get_device_properties().uuid}")
    use, celsius, mhz = driver.said() if driver else (math.nan,) * 3
    return Gpu(use, float(limit - free), float(limit), celsius, mhz)


@cache
def _driver(uuid: str) -> "Driver | None":
    try:
        return Driver(uuid)
    except OSError:
        return None


class Driver:
    """NVIDIA's own library for one GPU (NVML, https://docs.nvidia.com/deploy/nvml-api/). Raises OSError where it is not
    there, or does not know the GPU."""

    def __init__(self, uuid: str, library: str = "libnvidia-ml.so.1") -> None:
        self._nvml, self._gpu = ctypes.CDLL(library), ctypes.c_void_p()
        if self._nvml.nvmlInit_v2() or self._nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(self._gpu)):
            raise OSError(f"{library}: does not know {uuid}")

    def said(self) -> tuple[float, float, float]:
        """Share of the last moments in which the GPU computed, degrees C, MHz; NaN for what it does not say."""
        rates, celsius, mhz = (ctypes.c_uint * 2)(), ctypes.c_uint(), ctypes.c_uint()  # of the GPU, and of its memory
        failed = (
            self._nvml.nvmlDeviceGetUtilizationRates(self._gpu, rates),
            self._nvml.nvmlDeviceGetTemperature(self._gpu, SENSOR_OF_THE_GPU, ctypes.byref(celsius)),
            self._nvml.nvmlDeviceGetClockInfo(self._gpu, CLOCK_OF_THE_CORES, ctypes.byref(mhz)),
        )
        use, degrees, clock = (
            math.nan if code else float(value)
            for code, value in zip(failed, (rates[0], celsius.value, mhz.value), strict=True)
        )
        return use / 100, degrees, clock
