"""Runs that were really slowed down are told apart: recorded ones (faults.py made them), and three that are slowed now."""

import json
from pathlib import Path
from typing import Any

import faults
import pytest

from pants_dist.diagnosis import FEWEST, diagnose
from pants_dist.gauges import Measured, in_a_line

CALM = Measured(1.0, 0, 0.1, 2.0, 10, 20, 2e6, 1.0, 0.9, 0.05, 0.1, 0.2, 0, 2, 0, 0, 1e6, 1e8, 0, 0.9, 1e9, 4e9, 60, 1500)


def recorded(kind: str) -> list[dict[str, Any]]:
    path = faults.RECORDINGS / f"{kind.replace(' ', '_')}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", [kind for kind in faults.FAULTS if kind != "healthy"])
def test_the_fault_of_a_recording_is_named(kind: str) -> None:
    """It comes first, with what it costs, and with a cure; those of the others are not named."""
    first, *others = diagnose(recorded(kind))
    assert first.kind == kind and first.words.startswith(f"{kind}: ") and len(first.cure) > 20
    assert [one.kind for one in others] == []


def test_nothing_is_said_of_a_healthy_run_nor_of_a_few_lines() -> None:
    """A finding needs FEWEST lines after the first of the attempt, which is that of the start."""
    assert diagnose(recorded("healthy")) == diagnose([]) == []
    slow = recorded("slow disk")
    assert diagnose(slow[:FEWEST]) == [] and diagnose(slow[: FEWEST + 1])[0].kind == "slow disk"


def test_a_kernel_that_books_no_queues() -> None:
    """What sleeps and what waits for a CPU cannot be told apart there, and that is said."""
    lines = recorded("starved readers")
    for line in lines:
        line.pop("loader/read_queued", None)
    (found,) = diagnose(lines)
    assert found.kind == "slow disk" and "or for a CPU, which this kernel does not tell apart" in found.words


def test_only_the_last_attempt_counts() -> None:
    """What slowed a run down before it was started again is no longer said."""
    later = [row | {"attempt": 2, "step": row["step"] + 100} for row in recorded("healthy")]
    assert diagnose(recorded("slow disk") + later) == []


def test_lines_of_older_versions_and_of_validation_say_nothing() -> None:
    """Rows without what is looked at are passed over."""
    old = [{"step": n, "attempt": 1, "time": 0.0, "train/loss": 1.0, "loader/wait_fraction": 0.9} for n in range(50)]
    assert diagnose(old) == []


def test_a_line_is_as_long_for_256_ranks_as_for_4() -> None:
    """It names the rank and the node that are slowest, and those that wait most."""
    lines = []
    for count in (4, 256):
        ranks, nodes = [CALM] * count, [f"node{rank // 2}" for rank in range(count)]
        ranks[3] = CALM._replace(own_s=8.0)
        ranks[2] = CALM._replace(own_s=6.0)
        ranks[1] = CALM._replace(waited_s=5.0, read_cpu_s=0.2)
        lines.append(in_a_line(ranks, nodes, elapsed_s=10.0, steps=10))
    assert lines[0].keys() == lines[1].keys() and len(lines[1]) < 45
    line = lines[1]
    assert (line["loader/wait_fraction"], line["loader/wait_fraction_median"]) == (0.5, 0.01)
    assert (line["loader/waits_most"], line["loader/waits_most_node"], line["loader/read_cpu"]) == (1, "node0", 0.2)
    assert (line["ranks/slowest"], line["ranks/slowest_node"], line["ranks/own_s_max"]) == (3, "node1", 0.8)
    assert (line["nodes/slowest"], line["nodes/own_s_max"], line["nodes/own_s_median"]) == ("node1", 0.6, 0.2)
    assert line["loader/patches_per_s"] == 256 * 2 and line["gpu/memory_fraction"] == 0.25


def test_what_is_not_known_is_left_out() -> None:
    """Without Ray, a GPU, reads or a second node their numbers are missing, and none is NaN, which is no JSON."""
    unknown = CALM._replace(**{name: float("nan") for name in Measured._fields if name.startswith(("gpu", "store", "spill"))})
    line = in_a_line([unknown._replace(read_s=0, read_median_s=float("nan"), read_p95_s=float("nan"))], ["n"], 1.0, 1)
    assert not [name for name in line if name.startswith(("gpu/", "ray/", "nodes/", "loader/read_"))]
    assert json.loads(json.dumps(line, allow_nan=False)) == line


@pytest.mark.timeout(200)
@pytest.mark.parametrize("kind", ["slow disk", "slow rank", "small object store"])
def test_a_run_that_is_slowed_down_now(kind: str, tmp_path: Path) -> None:
    """Reads that take 0.3 s, a rank that is stopped again and again, a Ray with too little room: each is named."""
    rows = faults.FAULTS[kind](tmp_path)
    assert kind in [one.kind for one in diagnose(rows)]
    if kind == "slow rank":
        assert "rank 1 on node0" in next(one.words for one in diagnose(rows) if one.kind == kind)
    assert f"pants-dist: step {rows[FEWEST]['step']}: {kind}" in (tmp_path / "log").read_text() or kind == "small object store"
    said = json.loads((tmp_path / "run" / "summary.json").read_text())["slow"]
    assert any(words.startswith(kind) for words in said)
    assert not list((tmp_path / "run").glob("wandb*"))  # offline, the default, neither writes nor asks anything
    ranks = json.loads((tmp_path / "run" / "ranks.json").read_text())["ranks"]
    assert [rank["rank"] for rank in ranks] == list(range(3 if kind == "slow rank" else 1))
