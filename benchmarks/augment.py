"""Milliseconds a batch of each change that augmentation makes, and of the interpolation: pants_dist.augment.

    python benchmarks/augment.py [--batch 2] [--size 96] [--classes 28] [--device cpu] [--runs 9]

Every change is made to every image of the batch; `augmented` makes them as often as in training, and its time is the mean
over many seeds. Windows are those that the mapping needs, with 4 voxels around. The fastest of the runs counts, except for
`augmented`. On the CPU all runs on one thread.
"""

import argparse
import platform
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from pants_dist import augment

TURN_DEGREES = 20
SEEDS = 200
MARGIN = 4  # voxels of the window around what the patch covers


def turned(step: float) -> np.ndarray:
    """A turn about z and then about x, sampled `step` voxels apart."""
    cos, sin = np.cos(np.radians(TURN_DEGREES)), np.sin(np.radians(TURN_DEGREES))
    about_z = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    about_x = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return step * about_x @ about_z


def window_of(linear: np.ndarray, size: int, channels: int, device: str) -> tuple[Tensor, Tensor]:
    """A window of noise (channels, z, y, x) around a patch of size^3, and the mapping (3, 4) into its middle."""
    lengths = np.ceil(np.abs(linear).sum(axis=1) * (size - 1)).astype(int) + 1 + 2 * MARGIN
    shift = (lengths - 1) / 2 - linear @ np.full(3, (size - 1) / 2)
    if np.array_equal(linear, np.eye(3)):
        shift = np.floor(shift)
    volume = torch.rand((channels, *lengths.tolist()), generator=torch.Generator().manual_seed(0)).to(device)
    return volume, torch.from_numpy(np.column_stack([linear, shift]))


def interpolations(batch: int, size: int, classes: int, device: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """A name and the work of one batch, image and then classes."""
    kinds = {"shift": np.eye(3), "turned": turned(1.0), "turned, 1.4 x coarser": turned(1.4)}
    for kind, linear in kinds.items():
        for what, channels in (("image", 1), (f"{classes} classes", classes)):
            volume, to_window = window_of(linear, size, channels, device)

            def work(volume: Tensor = volume, to_window: Tensor = to_window) -> object:
                return [augment.resampled(volume, to_window, (size, size, size), 0.0) for _ in range(batch)]

            yield f"resampled: {kind}, {what}", work


def changes(batch: int, size: int, device: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """A name and the work of one batch, every image changed."""
    image = torch.randn((1, size, size, size), generator=torch.Generator().manual_seed(0)).to(device)
    kinds: dict[str, Callable[[], Tensor]] = {
        "noise": lambda: augment.noisy(image, 0.05, 0),
        "blur, sigma 0.75": lambda: augment.blurred(image, (0.75, 0.75, 0.75)),
        "brightness": lambda: augment.brightened(image, 1.1),
        "contrast": lambda: augment.contrasted(image, 1.1),
        "low resolution, 0.75": lambda: augment.lowered(image, 0.75),
        "gamma": lambda: augment.gamma_changed(image, 1.1, False),
    }
    for kind, change in kinds.items():
        yield kind, lambda change=change: [change() for _ in range(batch)]  # type: ignore[misc]


def seconds(work: Callable[[], object], device: str) -> float:
    begun = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, default in (("--batch", 2), ("--size", 96), ("--classes", 28), ("--runs", 9)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.cuda.get_device_name() if given.device.startswith("cuda") else platform.processor() or platform.machine()
    print(f"{device}, torch {torch.__version__}; milliseconds a batch of {given.batch} x {given.size}^3\n")
    print("| what | ms |\n|---|---|")
    work = [*interpolations(given.batch, given.size, given.classes, given.device)]
    for name, one in [*work, *changes(given.batch, given.size, given.device)]:
        seconds(one, given.device)
        fastest = min(seconds(one, given.device) for _ in range(given.runs))
        print(f"| {name} | {1000 * fastest:.2f} |", flush=True)
    images = torch.randn((given.batch, 1, given.size, given.size, given.size), device=given.device)
    every = [
        seconds(lambda first=first: augment.augmented(images, range(first, first + given.batch)), given.device)  # type: ignore[misc]
        for first in range(0, SEEDS * given.batch, given.batch)
    ]
    print(f"| augmented: all of these as often as in training | {1000 * np.mean(every):.2f} |")


if __name__ == "__main__":
    main()
