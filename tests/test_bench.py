import re
from pathlib import Path

import pytest
from small import make_store

from pants_dist import bench, cli, config


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("bench") / "s")


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SECONDS", 0.3)


def test_reading_is_measured_by_both_ways_with_a_verdict(store: Path, capsys: pytest.CaptureFixture) -> None:
    """Each way has its figures, and the verdict names a value of data.io."""
    assert cli.main(["bench", "read", str(store), "--config", "debug"]) == 0
    out = capsys.readouterr().out
    rows = {row[0]: [float(cell) for cell in row[1:]] for row in re.findall(r"^(\w+) +([\d.]+) +([\d.]+) +(\d+)$", out, re.M)}
    assert set(rows) == {"mmap", "pread"} and all(cell > 0 for row in rows.values() for cell in row)
    assert re.search(r"^verdict: (leave data.io at pread|set data.io to mmap)", out, re.M)


@pytest.mark.timeout(120)
def test_the_readers_that_training_needs_are_said(store: Path) -> None:
    """The number follows from the measured rates: enough cores for the training's patches, and a fifth more."""
    overrides = [f"--data.store={store}", "--data.patch_zyx=[16, 16, 16]", "--model.channels=[4, 8]", "--loader.kind=local"]
    lines = "\n".join(bench.loader_lines(config.load("debug", [*overrides, "--train.ranks=1"])))
    read, need = (float(re.search(rf"{word}: ([\d.]+) patches/s", lines)[1]) for word in ("reading", "training"))
    readers = int(re.search(r"verdict: loader.readers (\d+) keeps", lines)[1])
    assert readers - 1.01 < 1.2 * need / read < readers + 0.01
    assert re.search(r"loader: [\d.]+ patches/s by 1 readers \(local\)", lines)
