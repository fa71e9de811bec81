from dataclasses import replace
from pathlib import Path

import pytest

from pants_dist.doctor import GIB, PACKAGES, SLURM, Finding, Machine, judge, look

GOOD = Machine(
    python=(3, 12, 1), cores=8, cpu_quota=None, memory=64 * GIB, memory_limit=None, shared_memory_free=8 * GIB,
    folder=Path("/data"), disk_free=900 * GIB, files_free=10**7, packages=dict.fromkeys(PACKAGES, "1.0"),
    gpus=("NVIDIA H100",), torch_gpus=1, commands=SLURM, site="/home/ada/.config/pants-dist/cluster.yaml",
)  # fmt: skip


def test_a_machine_that_has_it_all_needs_no_cure() -> None:
    """Every finding is fine and none has a cure."""
    assert {(finding.level, finding.cure) for finding in judge(GOOD)} == {("ok", "")}


LACKS = [
    ({"python": (3, 10, 2)}, "Python", "missing", "install Python 3.11"),
    ({"packages": {"ray": None}}, "ray", "missing", "pip install"),
    ({"cpu_quota": 1.0}, "CPU cores", "note", "ask for 2 cores"),
    ({"memory_limit": 2 * GIB}, "memory", "note", "ask for 4 GiB"),
    ({"shared_memory_free": 64 << 20}, "/dev/shm", "note", "--loader.kind local"),
    ({"shared_memory_free": None}, "/dev/shm", "note", "--loader.kind local"),
    ({"disk_free": GIB}, "disk", "note", "another disk"),
    ({"files_free": 12}, "disk", "note", "one file a case"),
    ({"torch_gpus": 0}, "GPU", "note", "CUDA"),
    ({"torch_gpus": 0, "gpus": ()}, "GPU", "note", "nothing to do"),
    ({"commands": (), "site": None}, "SLURM", "note", "nothing to do"),
    ({"commands": SLURM[:2]}, "SLURM", "note", "ask the site"),
    ({"refusal": "sbatch refused: Batch job submission failed: Invalid account"}, "SLURM", "note", "cluster's file"),
    ({"open_files": 1024}, "open files", "note", "ulimit -Hn"),
    ({"site": None}, "site file", "note", "say once"),
    ({"site_fault": "cluster x.yaml: no entry 'partitoin'"}, "site file", "missing", "mend it"),
]


@pytest.mark.parametrize(
    ("change", "what", "level", "cure"), LACKS, ids=[f"{list(lack[0])[0]}-{n}" for n, lack in enumerate(LACKS)]
)
def test_a_lack_has_a_cure(change: dict, what: str, level: str, cure: str) -> None:
    """One line is about the lack, of the right weight and with what to do; the rest stay as they were."""
    lacking: list[Finding] = [finding for finding in judge(replace(GOOD, **change)) if finding.level != "ok"]
    assert [(finding.what, finding.level) for finding in lacking] == [(what, level)]
    assert cure in lacking[0].cure


def test_looking_asks_this_machine(tmp_path: Path) -> None:
    """The facts are those of the process that asks."""
    machine = look(tmp_path)
    assert machine.cores >= 1 and machine.memory > 0 and machine.disk_free >= 0
    assert all(machine.packages.values())


def test_the_cluster_s_file_is_read_and_the_quota_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is wrong is said as `submit` would say it; the quota comes from the command that the file names."""
    own = tmp_path / ".config" / "pants-dist" / "cluster.yaml"
    own.parent.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    own.write_text('quota_command: [echo, "12 of 100 GB"]\n')
    assert look(tmp_path).quota == ("12 of 100 GB",) and look(tmp_path).site == str(own)
    own.write_text("partitoin: gpu\n")
    assert "no entry 'partitoin'" in look(tmp_path).site_fault
