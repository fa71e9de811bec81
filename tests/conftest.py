"""One thread a process, for tests start many; and the real data that lie beside a checkout where there are any."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster

os.environ.setdefault("OMP_NUM_THREADS", "1")

LONGEST = ("test_slurm", "test_install", "test_train", "test_survival")  # minutes each

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left with one of them at the end."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real cases. Where it is missing a test that needs it is skipped; in CI it fails."""
    if not DATA.is_dir():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"no real data at {DATA}")
    return DATA


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm_cluster.Cluster]:
    """A real SLURM of three nodes. Where it is not installed its tests are skipped; in CI they fail."""
    if missing := slurm_cluster.missing():
        reason = f"no {missing[0]} here; as root: apt-get install slurm-wlm munge"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    with slurm_cluster.started(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster
