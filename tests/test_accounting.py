"""On a real SLURM with accounting: slurmdbd and its database, on this machine, in the folder of the test's cluster."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from slurm_cluster import SLOWER, Cluster, end, free_ports, missing, started, until

from pants_dist import jobs, queue, status
from pants_dist.jobs import submitted
from pants_dist.pipeline import command_stage
from pants_dist.site import Site
from pants_dist.submit import Resources

DATABASE = ("mariadbd", "mariadb-install-db", "slurmdbd")
CONF = """
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=root
StorageLoc=slurm
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
"""
MORE = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge.socket
MinJobAge=2
"""


@pytest.fixture(scope="module")
def keeping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose queue forgets a job 2 seconds after its end, and whose accounts do not."""
    if lacking := [*missing(), *(name for name in DATABASE if not shutil.which(name, path="/usr/bin:/usr/sbin"))]:
        pytest.skip(f"no {lacking[0]} here; as root: apt-get install slurmdbd mariadb-server")
    port, database = free_ports(2)

    @contextmanager
    def accounting(cluster: Cluster) -> Iterator[None]:
        folder = cluster.folder
        quiet = {"check": True, "timeout": 60 * SLOWER, "capture_output": True}
        data = ["--no-defaults", f"--datadir={folder}/database", "--user=root"]
        subprocess.run(["mariadb-install-db", *data, "--skip-test-db"], **quiet)
        (folder / "database.log").touch()
        listening = [f"--port={database}", "--bind-address=127.0.0.1", f"--socket={folder}/database.socket"]
        words = ["mariadbd", *data, *listening, "--skip-grant-tables", f"--log-error={folder}/database.log"]
        with subprocess.Popen(words) as server:
            try:
                until(lambda: f"port: {database}" in (folder / "database.log").read_text(), 30)
                conf = folder / "slurmdbd.conf"
                host = socket.gethostname().split(".")[0]
                conf.write_text(CONF.format(folder=folder, host=host, port=port, database=database))
                conf.chmod(0o600)
                subprocess.run(["slurmdbd"], env=cluster.environment, **quiet)
                until(lambda: not socket.socket().connect_ex(("127.0.0.1", port)), 60)
                yield
            finally:
                end(folder / "slurmdbd.pid")
                server.terminate()

    folder = tmp_path_factory.mktemp("accounts")
    with started(folder, MORE.format(port=port, folder=folder), accounting) as cluster:
        yield cluster


@pytest.mark.long
def test_what_the_queue_forgot_is_in_the_accounts(keeping: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`status` has the end of a job, and of elements of an array, from sacct once squeue knows nothing of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_CONF", keeping.environment["SLURM_CONF"])
    program = tmp_path / "env" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\ncase $* in *one*|*1/3*) exit 3;; *2/3*) exec sleep 600;; esac\n")
    program.chmod(0o755)
    site, asked = Site(environment_path=str(tmp_path / "env")), Resources(mem="100M", cpus_per_task=1)
    one = command_stage("report", ("report", "one"), Path("runs/one"), asked, tmp_path)
    three = command_stage("evaluate", ("evaluate", "x"), Path("runs/three"), asked, tmp_path, slices=3)
    for stage in (one, three):
        jobs.send([stage], site, None)
    ids = [job.job for run in ("one", "three") for job in submitted(Path("runs") / run)]
    until(lambda: keeping.job(ids[2], "JobState") == "RUNNING", 60)
    keeping.call("scancel", ids[2])
    until(lambda: not queue.states(ids), 60)
    lines = [line.split()[:3] for line in status.lines(status.rows(Path("runs")))[1:]]
    assert lines == [["one", "report", "FAILED"], ["three", "evaluate", "FAILED"]]
    assert "FAILED 1, CANCELLED 1" in status.lines(status.rows(Path("runs/three")))[1]
    assert [queue.accounted(ids)[job].word for job in ids] == ["FAILED", "FAILED", "CANCELLED", "COMPLETED"]
