from pathlib import Path

import pytest

from pants_dist.errors import UserError
from pants_dist.site import OWN_FILE, Site, load_site, program

SHIPPED = sorted((Path(__file__).parent.parent / "configs" / "cluster").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_are_read(path: Path) -> None:
    """Each example is whole, and found by its name as well as by its path."""
    assert load_site(path.stem) == load_site(str(path))


def test_the_users_own_file_is_the_default(tmp_path: Path) -> None:
    """Without a file the defaults; with ~/.config/pants-dist/cluster.yaml what it says, numbers and lists typed."""
    assert load_site(None, tmp_path) == Site()
    path = tmp_path / OWN_FILE
    path.parent.mkdir(parents=True)
    path.write_text("partition: gpu\nports: [30000, 31000]\nmodules: [a, b]\nsbatch: {reservation: ct}\n")
    expected = Site(partition="gpu", ports=(30000, 31000), modules=("a", "b"), sbatch={"reservation": "ct"})
    assert load_site(None, tmp_path) == expected


BAD = [
    ("partitoin: gpu", "no entry 'partitoin'; did you mean 'partition'?"),
    ("ports: [1, 2, 3]", "ports is [1, 2, 3]; it takes 2 whole numbers, like"),
    ("ports: [20000, 20010]", "ports is [20000, 20010]; give first and last"),
    ("environment: conda", "environment is 'conda'; it takes one of venv, tarball, apptainer"),
    ("sbatch: {mem: [1]}", "sbatch is {'mem': [1]}; it takes names with text"),
    ("- gpu", 'must hold entries, each on a line of its own as "name: value"'),
    ("a: [", "is not YAML"),
]


@pytest.mark.parametrize(("text", "says"), BAD, ids=[text for text, _ in BAD])
def test_a_wrong_file_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    """It names the file, the entry, the value and what fits."""
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        load_site(str(path))
    assert str(raised.value).startswith(f"cluster {path}: ") and says in str(raised.value)


def test_a_file_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    """Shipped names are listed."""
    with pytest.raises(UserError, match="--cluster nowhere: no such file; give .*example, workstation"):
        load_site("nowhere", tmp_path)


def test_each_environment_runs_the_program_in_its_way() -> None:
    """A venv by its Python, a tarball where it was unpacked, an image by apptainer; paths are quoted; the path must be set."""
    assert program(Site(environment_path="/my venv")) == ["'/my venv/bin/python'", "-m", "pants_dist"]
    assert program(Site(environment="tarball", environment_path="/t.tar"))[0] == '"$unpacked/bin/python"'
    image = Site(environment="apptainer", environment_path="/i;.sif")
    assert program(image) == ["apptainer", "exec", "--nv", "'/i;.sif'", "pants-dist"]
    with pytest.raises(UserError, match="environment is apptainer, but environment_path is not set"):
        program(Site(environment="apptainer"))
