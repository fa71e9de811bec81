"""Steps of training: with real data against constant tensors, and over more ranks.

    python benchmarks/train.py STORE [--rounds 3] [--steps 10] [--config baseline.yaml] [--compile] [--ranks 1 2 4]
                               [--steps-only | --scaling-only]

real / constant: one rank a GPU trains the network of --config through our trainer, on the plan's patches and on the first
step's patches over and over, in turns in the same processes. Without a GPU two ranks train a network small enough for a CPU
(SMALL), with all else as in the config. "cut": what cutting patches out of their windows and augmenting them takes, and its
share of the step, in a third turn that waits for the device before and after it. "peak": the device's memory that our
process had in use at most. nnU-Net: its own train_step with the same network in one process, on a batch that lies on the
device already, in its own precision (fp16 on a GPU); needs nnunetv2. On a GPU, or with --compile, all of it once more with
torch.compile, which is how nnU-Net trains on a GPU.
weak scaling: ranks whose step takes as long as one of a GPU may take (WAIT_S), each with as many patches. "device": all that
a GPU would do, gradients and update with it, is over WAIT_S after the step began; reading, handing over and our own work
between steps remain. "after": the network waits, and then gradients go through gloo and weights are updated on these cores.
"bare DDP": the same as "after" in a loop of torch's own, without reading and without us. Efficiency is the rate a rank,
against one rank.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import nnunet
import torch

from pants_dist import config
from pants_dist.config import Settings
from pants_dist.launch import reading
from pants_dist.model import Patches, Segmenter
from pants_dist.plan import plan_of
from pants_dist.splits import splits_of
from pants_dist.strides import CUBES, dynunet_levels
from pants_dist.train import intensity_of, loader_of, store_of, trainer_of

WAIT_S = 0.2  # that the stand-in for a network takes for a micro-batch
WARM = 3  # steps before the clock starts
SMALL = [
    "--data.patch_zyx=[48, 80, 80]", "--model.channels=[16, 32, 64]", "--model.target=two_class", "--loader.readers=1",
    "--augment.intensity=false", "--data.max_window_mb=32",
]  # fmt: skip
SHORT = ["--validation.every=null", "--tracking.wandb=off", "--data.val_fraction=0"]


def now() -> float:
    """Seconds, once the device has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock(L.Callback):
    """Seconds of the steps after the first few."""

    def __init__(self) -> None:
        self.begun, self.seconds, self.steps = 0.0, 0.0, 0

    def on_train_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
        self.steps += 1
        if self.steps == WARM:
            self.begun = now()
        self.seconds = now() - self.begun

    @property
    def a_step(self) -> float:
        return self.seconds / (self.steps - WARM)


class Cutting(Segmenter):
    """Notes how long its patches take."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.cut: list[float] = []

    def patches(self, micro: Any) -> Patches:
        begun = now()
        patches = super().patches(micro)
        self.cut.append(now() - begun)
        return patches


class Waiting(Segmenter):
    """A training step that only waits: its loss touches every weight, so gradients are exchanged as ever."""

    def loss(self, micro: Any) -> torch.Tensor:
        time.sleep(WAIT_S)
        return nothing_of(self.network)


class Device(Segmenter):
    """A training step that is over WAIT_S after it began, update and all, as far as that is not too short for them."""

    def loss(self, micro: Any) -> torch.Tensor:
        self.over = time.perf_counter() + WAIT_S
        return nothing_of(self.network)

    def training_step(self, *given: Any) -> dict[str, torch.Tensor]:
        done = super().training_step(*given)
        time.sleep(max(0.0, self.over - time.perf_counter()))
        return done


def nothing_of(network: torch.nn.Module) -> torch.Tensor:
    """0, with a gradient for every weight."""
    return torch.stack([weight.sum() for weight in network.parameters()]).sum() * 0


class Bare(torch.nn.Module):
    """The same step for torch's own DDP."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self) -> torch.Tensor:
        time.sleep(WAIT_S)
        return nothing_of(self.network)


def bare_ddp(module: Segmenter, steps: int) -> float:
    """Seconds a step of a plain loop: forward, backward with DDP's exchange, clipping, AdamW, one flag agreed on."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    network = torch.nn.parallel.DistributedDataParallel(Bare(module.network))
    optimizer, begun = torch.optim.AdamW(network.parameters()), 0.0
    for step in range(WARM + steps):
        optimizer.zero_grad()
        network().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), module.settings.optim.clip_norm)
        optimizer.step()
        torch.distributed.all_reduce(torch.zeros(2, dtype=torch.float64))
        begun = time.perf_counter() if step == WARM - 1 else begun
    return (time.perf_counter() - begun) / steps


def rank_main(path: Path, steps: int, rounds: int, waiting: bool) -> None:
    """One rank: prints, as rank 0, seconds a step by kind of step, a list with a number a round; "peak" is in bytes."""
    settings = config.load(path, [])
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = store_of(settings.data)
    plan = plan_of(store, settings, splits_of(store, settings.data))
    kinds = ("device", "after", "bare DDP") if waiting else ("real", "constant", "cut")
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    items = iter(loader_of(store, plan, settings, rank, ranks, 0))
    constant = itertools.repeat(next(items))
    networks = {"device": Device, "after": Waiting, "cut": Cutting}
    for _ in range(rounds):
        for kind in found:
            L.seed_everything(0, verbose=False)
            module = networks.get(kind, Segmenter)(settings, intensity_of(store, plan.cases), store)
            if kind == "bare DDP":
                found[kind].append(bare_ddp(module, steps))
                continue
            clock, data = Clock(), constant if kind == "constant" else items
            trainer_of(WARM + steps, ranks, [clock]).fit(module, data)
            found[kind].append(median(module.cut[WARM:]) if isinstance(module, Cutting) else clock.a_step)
    if torch.cuda.is_available():
        found["peak"] = [torch.cuda.max_memory_allocated()]
    if rank == 0:
        print(json.dumps(found), flush=True)
    os._exit(0)  # readers go with their rank


def measured(settings: Settings, steps: int, rounds: int, waiting: bool = False) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(config.dump(settings))
        ranks = settings.train.ranks
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", __file__]
        with reading(settings) as environment:
            with open(Path(folder) / "said", "w") as said:  # no pipe: readers that outlive their rank would hold it
                subprocess.run(
                    [*command, str(path), "--rank-main", f"--steps={steps}", f"--rounds={rounds}", *["--waiting"] * waiting],
                    stdout=said, stderr=said, env=os.environ | environment | {"OMP_NUM_THREADS": "1"}, check=False,
                )  # fmt: skip
        text = (Path(folder) / "said").read_text()
    lines = [line for line in text.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"a rank failed:\n{text[-3000:]}")
    return json.loads(lines[-1])


def real_against_constant(given: argparse.Namespace, compiled: bool) -> None:
    """Two rows of the table: ours, and nnU-Net's step."""
    gpus = torch.cuda.device_count()
    ranks, small = gpus or 2, [] if gpus else SMALL
    more = [f"--data.store={given.store}", f"--train.ranks={ranks}", f"--train.compile={compiled}", *SHORT, *small]
    settings = config.load(given.config, more)
    settings = replace(settings, train=replace(settings.train, batch=ranks * settings.train.micro_batch, steps=1 << 20))
    found = measured(settings, given.steps, given.rounds)
    real, constant, cut = (median(found[kind]) for kind in ("real", "constant", "cut"))
    ratios = [a / b for a, b in zip(found["real"], found["constant"], strict=True)]
    how = ", compiled" * compiled
    print(f"| {given.config}, {ranks} ranks, {settings.loader.kind}{how} | {1e3 * real:.0f} | {1e3 * constant:.0f} ", end="")
    print(f"| {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) ", end="")
    print(f"| {1e3 * cut:.0f} | {cut / constant:.1%} | {gigabytes(found.get('peak'))} |", flush=True)
    seconds, peak = nnunet_step(settings, given.steps, compiled)
    print(f"| nnU-Net's own step{how} | | {1e3 * seconds:.0f} | | | | {gigabytes(peak)} |", flush=True)


def gigabytes(bytes_used: list[float] | None) -> str:
    return f"{max(bytes_used) / 1e9:.1f}" if bytes_used else ""


def nnunet_step(settings: Settings, steps: int, compiled: bool) -> tuple[float, list[float] | None]:
    """Median seconds a step of nnU-Net's, on one thread of a CPU, and peak memory on a GPU; nan where it is not to be had."""
    model, data = settings.model, settings.data
    if not nnunet.installed() or model.name != "dynunet" or model.blocks != (0,):
        return float("nan"), None
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    levels = dynunet_levels(len(model.channels), data.patch_zyx, data.spacing_mm_zyx or CUBES)
    shape = (settings.train.micro_batch, 1, *data.patch_zyx)
    step = nnunet.training_step(levels, model.channels, len(model.outputs.channels), shape, compiled)
    times = [now()]
    for _ in range(WARM + steps):
        step()
        times.append(now())
    found = median(after - before for before, after in itertools.pairwise(times[WARM:]))
    return found, [torch.cuda.max_memory_allocated()] if torch.cuda.is_available() else None


def weak_scaling(given: argparse.Namespace) -> None:
    print("\n| ranks | device: a step, ms | efficiency | after | efficiency | bare DDP | efficiency |\n" + "|---" * 7 + "|")
    alone: dict[str, float] = {}
    for ranks in given.ranks:
        settings = config.load("debug", [
            f"--data.store={given.store}", f"--train.ranks={ranks}", f"--train.batch={2 * ranks}", "--train.micro_batch=2",
            "--train.steps=1000000", *SHORT,
        ])  # fmt: skip
        found = measured(settings, given.steps, given.rounds, waiting=True)
        a_step = {kind: median(seconds) for kind, seconds in found.items()}
        alone = alone or a_step
        cells = (f"{1e3 * seconds:.1f} | {alone[kind] / seconds:.3f}" for kind, seconds in a_step.items())
        print(f"| {ranks} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("store", type=Path)
    parser.add_argument("--config", default="baseline.yaml")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--compile", action="store_true", help="without a GPU too")
    parser.add_argument("--steps-only", action="store_true")
    parser.add_argument("--scaling-only", action="store_true")
    parser.add_argument("--rank-main", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--waiting", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank_main:
        return rank_main(given.store, given.steps, given.rounds, given.waiting)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"`python {' '.join(sys.argv)}`: {os.cpu_count()} cores, {device}, load {os.getloadavg()[0]:.1f} at the start.\n")
    if not given.scaling_only:
        columns = ("config", "real, ms a step", "constant", "ratio, median of rounds", "cut, ms", "its share", "peak, GB")
        print(f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|")
        for compiled in [False, True] if given.compile or torch.cuda.is_available() else [False]:
            real_against_constant(given, compiled)
    if not given.steps_only:
        weak_scaling(given)


if __name__ == "__main__":
    main()
