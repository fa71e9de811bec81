"""What a catalog of all 36,390 volumes costs beside a small one: start-up, each patch, memory.

    python benchmarks/scale.py STORE [--patches 200] [--ray-nodes 1]

STORE has some full-size cases. Its files are hard-linked, and its manifest rows repeated, to catalogs of 36, 3,639 and
36,390 cases beside it, which are removed again. Each catalog is opened and planned in a fresh process; patches of
96 x 96 x 96 voxels, image and codes, are then read in plan order by all processes in turn, so that the machine's other
work falls on all alike. With --ray-nodes the same patches come through Ray's reading actors, one a node, on a cluster of so
many nodes on this machine (ray.cluster_utils.Cluster).
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from pants_dist import cluster, config
from pants_dist.geometry import Geometry
from pants_dist.loader import Reader, make_source
from pants_dist.plan import Plan, plan_of
from pants_dist.splits import splits_of
from pants_dist.store import Store, open_store, write_manifest

SIZES = (36, 3_639, 36_390)
ROUNDS = 5
WITHOUT_VALIDATION = ["--data.val_fraction=0"]
PATCH = Geometry((96, 96, 96))


def catalog(store: Path, folder: Path, count: int) -> Path:
    """A store of `count` cases whose files are hard links to those of `store`."""
    rows = open_store(store).table.to_pylist()
    (folder / "cases").mkdir(parents=True)
    repeated = []
    for number in range(count):
        row = rows[number % len(rows)]
        case = f"PanTS_{number + 1:08d}"
        os.link(store / "cases" / f"{row['case']}.ozx", folder / "cases" / f"{case}.ozx")
        repeated.append({**row, "case": case, "official_split": "train"})
    write_manifest(folder, repeated)
    return folder


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def baseline_plan(store: Store) -> Plan:
    """The plan of the shipped baseline, without validation."""
    settings = config.load("baseline", [f"--data.store={store.path}", *WITHOUT_VALIDATION])
    return plan_of(store, settings, splits_of(store, settings.data))


def serve(folder: str) -> None:
    """In a process of its own: start up, then read as many patches as each line on stdin says."""
    before = resident_bytes()
    begun = time.perf_counter()
    store = open_store(folder)
    opened = time.perf_counter()
    plan = baseline_plan(store)
    digest = plan.digest
    planned = time.perf_counter()
    grown = resident_bytes() - before
    some = store.cases[:200]
    store.layout(some[0])  # reads the columns
    began = time.perf_counter()
    for case in some:
        store.open_case(case)
    an_open = (time.perf_counter() - began) / len(some)
    print(json.dumps([opened - begun, planned - opened, grown, digest, an_open]), flush=True)
    reader, number = Reader(store, PATCH), 0
    for line in sys.stdin:
        begun = time.perf_counter()
        samples = [plan.sample(index) for index in range(number, number + int(line))]
        drawn = time.perf_counter()
        for sample in samples:
            reader.read([sample])
        number += int(line)
        print(json.dumps([(drawn - begun) / int(line), (time.perf_counter() - drawn) / int(line)]), flush=True)


def through_ray(catalogs: dict[int, Path], nodes: int, patches: int) -> dict[int, float]:
    """Seconds a patch by catalog, the median of ROUNDS turns, read by an actor on each node: no node has room for two."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "resources": {cluster.READER_SLOT: 1}, "object_store_memory": 512 << 20}
    machines = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            machines.add_node(**node)
        os.environ["RAY_ADDRESS"] = machines.address
        stores = {size: open_store(folder) for size, folder in catalogs.items()}
        plans = {size: baseline_plan(store) for size, store in stores.items()}
        seconds: dict[int, list[float]] = {size: [] for size in catalogs}
        for turn, size in itertools.product(range(ROUNDS), catalogs):
            source: Any = make_source("ray", Reader(stores[size], PATCH), nodes, 4 * nodes)
            samples = [plans[size].sample(turn * 2 * patches + n) for n in range(2 * patches)]
            for part in (samples[:patches], samples[patches:]):  # the first to warm up
                begun = time.perf_counter()
                for _ in source.stream(iter([[sample] for sample in part])):
                    pass
            seconds[size].append((time.perf_counter() - begun) / patches)
            for reader in source.readers:
                ray.kill(reader)
        return {size: median(found) for size, found in seconds.items()}
    finally:
        ray.shutdown()
        machines.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("store", type=Path)
    parser.add_argument("--patches", type=int, default=200)
    parser.add_argument("--ray-nodes", type=int, help="read through Ray on a cluster of so many nodes")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        return serve(str(given.store))
    with tempfile.TemporaryDirectory(dir=given.store.absolute().parent) as folder:
        catalogs = {size: catalog(given.store, Path(folder) / str(size), size) for size in SIZES}
        if given.ray_nodes:
            found = through_ray(catalogs, given.ray_nodes, given.patches)
            costs_ms = ", ".join(f"{size:,} cases {seconds * 1e3:.2f} ms" for size, seconds in found.items())
            print(f"{given.ray_nodes} Ray nodes, a patch: {costs_ms}")
            return
        processes, started = {}, {}
        for size in SIZES:
            command = [sys.executable, __file__, str(catalogs[size]), "--serve"]
            processes[size] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            started[size] = json.loads(processes[size].stdout.readline())
        costs: dict[int, list[list[float]]] = {size: [] for size in SIZES}
        for turn in range(ROUNDS + 1):
            for size, process in processes.items():
                print(given.patches, file=process.stdin, flush=True)
                answer = json.loads(process.stdout.readline())
                if turn:
                    costs[size].append(answer)
        for process in processes.values():
            process.stdin.close()
            process.wait()
    print("| cases | open, s | plan and digest, s | memory for both, MB | a case opened, us | a sample, us | a patch, ms |")
    print("|---|---|---|---|---|---|---|")
    for size in SIZES:
        opened, planned, memory, _, an_open = started[size]
        sample, patch = (median(column) for column in zip(*costs[size], strict=True))
        print(f"| {size:,} | {opened:.2f} | {planned:.2f} | {memory / 1e6:.0f} | {an_open * 1e6:.0f} ", end="")
        print(f"| {sample * 1e6:.0f} | {patch * 1e3:.2f} |")


if __name__ == "__main__":
    main()
