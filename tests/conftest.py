"""One thread a process, for tests start many; and the real data that lie beside a checkout where there are any."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real cases. Where it is missing a test that needs it is skipped; in CI it fails."""
    if not DATA.is_dir():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"no real data at {DATA}")
    return DATA
