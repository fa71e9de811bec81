"""Stopwatches, thread clocks, and what a GPU's driver is asked."""

import math
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from pants_dist.clocks import Spent, spent
from pants_dist.devices import Driver, Gpu, Stopwatch, gpu

DRIVER = r"""
#include <string.h>
static int gpu;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) { *device = &gpu; return strcmp(uuid, "GPU-1") ? 6 : 0; }
int nvmlDeviceGetUtilizationRates(void *device, unsigned *rates) { rates[0] = 37; rates[1] = 90; return device != &gpu; }
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius) { *celsius = 71 + sensor; return device != &gpu; }
int nvmlDeviceGetClockInfo(void *device, int clock, unsigned *mhz) { *mhz = 1400 + clock; return 3; }
"""


def test_a_stopwatch_adds_up_and_begins_anew() -> None:
    """What lies between two blocks does not count."""
    watch = Stopwatch()
    for _ in range(2):
        with watch:
            time.sleep(0.05)
        time.sleep(0.2)
    assert 0.1 <= watch.taken_s() < 0.2 and watch.taken_s() == 0


def test_a_thread_s_time_is_told_apart() -> None:
    """Sleep is neither CPU nor queue, arithmetic is CPU, and a core shared with others is queue."""

    def took(work) -> Spent:
        before = spent()
        work()
        return spent().since(before)

    def compute(seconds: float = 0.3) -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    asleep, computing = took(lambda: time.sleep(0.3)), took(compute)
    assert asleep.seconds >= 0.3 and asleep.cpu_s < 0.1 and computing.cpu_s >= 0.3
    if math.isnan(asleep.queued_s):
        pytest.skip("this kernel does not book the queue for a CPU")
    found: list[Spent] = []

    def crowded() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of this thread
        found.append(took(compute))

    core = str(min(os.sched_getaffinity(0)))
    others = [subprocess.Popen(["taskset", "-c", core, "sh", "-c", "while :; do :; done"]) for _ in range(3)]
    thread = threading.Thread(target=crowded)
    thread.start()
    thread.join()
    for other in others:
        other.kill()
    assert found[0].queued_s > found[0].cpu_s and found[0].queued_s + found[0].cpu_s == pytest.approx(found[0].seconds, rel=0.2)


def test_without_a_gpu_nothing_is_known() -> None:
    assert all(math.isnan(value) for value in Gpu()) and len(gpu()) == len(Gpu._fields)
    with pytest.raises(OSError):
        Driver("GPU-1", "libnothing-of-this-name.so")


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler here")
def test_what_the_driver_says(tmp_path: Path) -> None:
    """Against a library with NVML's own signatures: use as a share, degrees; NaN for the clock, which this one refuses."""
    (tmp_path / "nvml.c").write_text(DRIVER)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "nvml.so", tmp_path / "nvml.c"], check=True)
    use, celsius, mhz = Driver("GPU-1", str(tmp_path / "nvml.so")).said()
    assert (use, celsius) == (0.37, 71.0) and math.isnan(mhz)
    with pytest.raises(OSError, match="does not know GPU-2"):
        Driver("GPU-2", str(tmp_path / "nvml.so"))
