"""From a wheelhouse into a new environment, and a short run there, all in a namespace that has no network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALONE = """
import fcntl, socket, struct, subprocess, sys
with socket.socket() as probe:  # a new namespace has its loopback down
    fcntl.ioctl(probe, 0x8914, struct.pack("16sH14s", b"lo", 1 | 64, b""))  # SIOCSIFFLAGS: IFF_UP | IFF_RUNNING
    try:
        probe.connect(("192.0.2.1", 80))
        sys.exit("there is a network")
    except OSError:
        pass
sys.exit(subprocess.run(sys.argv[1:]).returncode)
"""
SMALL = ["--data.patch_zyx=[16, 32, 32]", "--model.channels=[4, 8, 16]", "--train.steps=4", "--train.ranks=1"]


@pytest.mark.timeout(900)
def test_a_wheelhouse_installs_and_runs_without_network(tmp_path: Path) -> None:
    """`make wheelhouse` checks every hash of requirements.lock; what it made is enough for the whole main job.

    torch is the one without CUDA here, which the lock does not name: 200 MB instead of 3 GB.
    """
    alone = ["unshare", "--net", sys.executable, "-c", ALONE]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        reason = "a network namespace takes root (unshare --net)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    wheels, environment = tmp_path / "wheels", os.environ | {"PYTHONPATH": "", "PIP_RETRIES": "0"}
    made = [*("make", "wheelhouse", "CPU=1"), f"WHEELHOUSE={wheels}", f"VENV={sys.prefix}"]
    done = subprocess.run(made, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    locked = (ROOT / "requirements.lock").read_text()
    assert "--hash=sha256:" in locked and not list(wheels.glob("nvidia*")) and len(list(wheels.glob("*.whl"))) > 80

    bare = {name: value for name, value in environment.items() if not name.startswith("PIP_")}
    bare |= {"PIP_CONFIG_FILE": "/dev/null", "PYTHONDONTWRITEBYTECODE": ""}  # what is compiled once is read thereafter

    def run(*words: str | Path) -> str:
        done = subprocess.run([*alone, *words], cwd=tmp_path, env=bare, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stdout[-1000:], done.stderr[-3000:])
        return done.stdout

    run(sys.executable, "-m", "venv", "env")
    run("env/bin/pip", "install", "--quiet", "--no-compile", "--no-index", "--find-links", wheels, "pants-dist")
    shutil.rmtree(wheels)
    run("env/bin/pants-dist", "phantom", "phantom", "--cases", "6", "--centers", "3", "--scale", "0.15")
    run("env/bin/pants-dist", "convert", "phantom", "store")
    held_out = '--data.held_out_centers=["Phantom Hospital B"]'
    run("env/bin/pants-dist", "train", "--config", "debug", "--run-name", "r", "--data.store=store", held_out, *SMALL)
    assert "Next: open runs/r/evaluation/report.html" in run("env/bin/pants-dist", "evaluate", "runs/r")
