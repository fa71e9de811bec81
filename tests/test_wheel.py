import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from pants_dist import __version__

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, as pip builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True)
    (built,) = folder.glob("*.whl")
    return built


def names(*patterns: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)}


def test_the_wheel_carries_everything_and_nothing_else(wheel: Path) -> None:
    """Both packages with their tables, templates and typing, the configs inside; neither tests nor benchmarks."""
    carried = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    ours = ("**/*.py", "**/*.csv", "templates/*", "dashboard/assets/*")
    code = names(*(f"pants_dist/{pattern}" for pattern in ours), "conversion/**/*.py")
    moved = {f"pants_dist/{name}" for name in names("configs/**/*.yaml", "slurm/*.*")}
    assert carried == code | moved
    assert {"pants_dist/configs/debug.yaml", "conversion/run.py", "pants_dist/centers.csv"} <= carried


def test_the_wheel_finds_its_configs(wheel: Path, tmp_path: Path) -> None:
    """Unpacked somewhere else and run from there, a shipped config is found by its name."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "from pants_dist import config; print(config.shipped('debug')); config.check(config.load('debug.yaml', []))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-P", "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert said.stdout.strip() == str(tmp_path / "pants_dist" / "configs" / "debug.yaml")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_wheel_installs_into_a_new_environment(wheel: Path, tmp_path: Path) -> None:
    """With its own dependencies alone it runs: version, doctor, and a cohort of two cases converted and verified."""
    venv.create(tmp_path / "venv", with_pip=True)
    scripts = tmp_path / "venv" / "bin"
    subprocess.run([scripts / "python", "-m", "pip", "install", "--quiet", wheel], check=True)
    for words in (["--version"], ["doctor"], ["phantom", "p", "--cases", "2", "--centers", "2"], ["convert", "p", "s"]):
        done = subprocess.run([scripts / "pants-dist", *words], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert words != ["--version"] or done.stdout == f"pants-dist {__version__}\n"
    done = subprocess.run([scripts / "pants-dist", "verify", "s", "--against", "p"], cwd=tmp_path)
    assert done.returncode == 0
