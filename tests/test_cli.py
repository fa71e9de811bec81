import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small import make_store
from sources import write_pants

from pants_dist import __version__, cli
from pants_dist.doctor import ROCM
from pants_dist.parser import run_name_of, settings_of

HEAVY = ("torch", "ray", "lightning", "monai", "zarr", "pandas", "numpy", "jsonargparse")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("cli") / "store", cases=4)


def python(code: str, *words: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True).stdout


def test_help_and_import_are_light() -> None:
    """`import pants_dist` and `pants-dist --help` import nothing heavy and take under a second of processor time."""
    code = (
        "import sys, time, pants_dist, pants_dist.cli\n"
        "try: pants_dist.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print('heavy:', [name for name in {HEAVY!r} if name in sys.modules], time.process_time())"
    )
    *help_text, last = python(code).splitlines()
    assert any("usage: pants-dist" in line for line in help_text)
    modules, seconds = last.removeprefix("heavy: ").rsplit(" ", 1)
    assert modules == "[]"
    assert float(seconds) < 0.8


def test_what_a_login_node_does_is_light(store: Path, tmp_path: Path) -> None:
    """Submit training on GPUs, look at it, read its log, withdraw it, doctor: none of them imports torch or Ray.

    Where there is a GPU doctor asks torch whether it can use it.
    """
    words = ["submit", "train", "--config", "debug", "--data.store", str(store), "--gpus-per-node", "2", "--dry-run"]
    calls = [words, ["status", "runs"], ["logs", "runs/debug"], ["cancel", "runs/debug"]]
    calls += [] if shutil.which("nvidia-smi") or ROCM.exists() else [["doctor"]]
    code = (
        "import sys, pathlib, pants_dist.cli\n"
        "pathlib.Path('runs/debug').mkdir(parents=True)\n"
        "pathlib.Path('runs/debug/summary.json').write_text('{\"state\": \"running\"}')\n"
        f"codes = [pants_dist.cli.main(words) for words in {calls!r}]\n"
        f"print(codes[:2], [name for name in {HEAVY[:5]!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[0, 0] []", done.stderr


def test_the_store_can_be_opened_from_the_package(store: Path) -> None:
    """`pants_dist.open_store(...)` after `import pants_dist` alone, as the design's example has it."""
    code = (
        "import sys, pants_dist\n"
        "store = pants_dist.open_store(sys.argv[1])\n"
        "image, codes = store.read_patch('PanTS_00000001', corner_zyx=(1, 2, 3), size_zyx=(9, 8, 7))\n"
        "print(image.shape, codes.shape)"
    )
    assert python(code, str(store)) == "(9, 8, 7) (9, 8, 7)\n"


def test_version_and_every_help(capsys: pytest.CaptureFixture) -> None:
    """`--version` prints the one version there is; each verb has `--help` with a line on each of its options."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"pants-dist {__version__}\n"
    for verb, parser in cli.build_parser()[1].items():
        with pytest.raises(SystemExit) as ended:
            cli.main([verb, "--help"])
        assert ended.value.code == 0
        text = capsys.readouterr().out
        assert all(option in text for option in parser.options), verb


BAD = [
    (["trian"], "no verb 'trian'; did you mean 'train'?"),
    (["frobnicate"], "no verb 'frobnicate'; there are "),
    (["--vrsion"], "no option --vrsion; did you mean '--version'?"),
    (["train", "--confg", "x"], "train: no option --confg; did you mean '--config'?"),
    (["train", "--config", "debug", "--optm.lr=3"], "train: no option --optm.lr; did you mean '--optim.lr'?"),
    (["train", "--config", "debug", "--train.steps", "x"], "train.steps is 'x'; it takes a whole number"),
    (["train", "--config", "debug", "--train.batch", "3"], "train.batch is 3, which 2 ranks"),
    (["train", "--config", "debug", "--run-name", "../x"], "--run-name '../x': must be a plain name"),
    (["train", "--config", "debug", "extra"], "train: 'extra' is more than it takes"),
    (["train"], "the following arguments are required: --config"),
    (["train", "--config", "debug", "--data.store", "nowhere"], "store nowhere: no such folder"),
    (["convert", "x", "y", "--limt", "3"], "convert: no option --limt; did you mean '--limit'?"),
    (["convert", "x", "y", "--slice", "3"], "--slice 3: give I/N"),
    (["convert", "nowhere", "y"], "source nowhere: no such folder"),
    (["phantom", "x", "--cases", "many"], "argument --cases: invalid int value: 'many'"),
    (["info", "nowhere"], "store nowhere: no such folder"),
    (["split", "nowhere", "--out", "x.json"], "store nowhere: no such folder"),
    (["split", "nowhere"], "the following arguments are required: --out"),
    (["verify", "nowhere"], "store nowhere: no such folder"),
    (["export", "nowhere", "case", "out"], "store nowhere: no such folder"),
    (["evaluate", "nowhere"], "run nowhere: no config.yaml there"),
    (["evaluate", "nowhere", "--slice", "3"], "--slice 3: give I/N"),
    (["evaluate", "nowhere", "--ranks", "0"], "--ranks 0: must be at least 1"),
    (["evaluate", "nowhere", "--mirror", "--predictions", "x"], "--mirror is for the run's own model"),
    (["predict", "nowhere", "ct.nii.gz", "out"], "checkpoint nowhere: no such file; give a run's folder"),
    (["demo", "--data", "nowhere"], "--data nowhere: no such folder"),
    (["report", "nowhere"], "nowhere"),
]


@pytest.mark.parametrize(("words", "says"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_line(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """What, which value, where, what to do: one line on stderr, exit code 2, no traceback, nothing made."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("pants-dist: ") and says in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_ray_cluster_that_is_not_there_is_one_line(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Ray itself would knock for ever."""
    assert cli.main(["convert", str(write_pants(tmp_path / "PanTS", [1])), str(tmp_path / "s"), "--ray", "127.0.0.1:1"]) == 2
    assert "--ray 127.0.0.1:1: no Ray cluster to join" in capsys.readouterr().err


def test_a_store_that_is_not_finished_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Each is one line that names the store, what is the matter, and the next command."""
    (tmp_path / "empty").mkdir()
    assert cli.main(["info", str(tmp_path / "empty")]) == 2
    assert "manifest.parquet is missing, this folder is no store; run" in capsys.readouterr().err
    (tmp_path / "half" / "cases").mkdir(parents=True)
    assert cli.main(["info", str(tmp_path / "half")]) == 2
    assert "the conversion is not finished; run" in capsys.readouterr().err


def test_what_the_disk_refuses_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A path that cannot be made is named with the system's reason."""
    (tmp_path / "file").write_text("x")
    assert cli.main(["phantom", str(tmp_path / "file" / "p"), "--cases", "2", "--centers", "2"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "Not a directory" in lines[0] and str(tmp_path / "file") in lines[0]


def test_settings_may_stand_before_the_config(tmp_path: Path) -> None:
    """An override counts wherever it stands, and the run is named after the config."""
    path = tmp_path / "mine.yaml"
    path.write_text("data: {store: a}\noptim: {lr: 0.1}\ntrain: {steps: 3}\n")
    words = [
        "train",
        "--optim.lr",
        "0.5",
        "--config",
        str(path),
        "--train.steps=4",
        "--data.held_out_centers",
        "[A, B c]",
    ]
    given = cli.build_parser()[0].parse_args(words)
    settings = settings_of(given)
    assert (settings.optim.lr, settings.train.steps, settings.data.held_out_centers) == (0.5, 4, ("A", "B c"))
    assert run_name_of(given) == "mine"


def test_info_tells_people_and_programs(store: Path, capsys: pytest.CaptureFixture) -> None:
    """`info` shows the store's centers and says what to do next; with --json stdout is JSON and nothing else."""
    assert cli.main(["info", str(store)]) == 0
    text = capsys.readouterr().out
    assert "Center A" in text and text.splitlines()[-1].startswith("Next: ")
    assert cli.main(["info", str(store), "--json"]) == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert (facts["cases"], facts["with_lesion"], facts["centers"]["Center A"]["cases"]) == (4, 2, 2)
    assert said.err.startswith("Next: ")


def test_convert_ends_with_what_info_shows_later(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Centers by split, bytes and files before and after, problems by kind, and what was refused, which makes it 1."""
    source = write_pants(tmp_path / "PanTS", [1, 2, 3, 9001])
    (source / "ImageTr" / "PanTS_00000003" / "ct.nii.gz").write_bytes(b"")
    assert cli.main(["convert", str(source), str(tmp_path / "store")]) == 1
    told = capsys.readouterr()
    assert "GB/s, 1 quarantined" in told.err
    assert cli.main(["info", str(tmp_path / "store")]) == 0
    later = capsys.readouterr().out.splitlines()
    said = told.out.splitlines()
    assert said[said.index(later[0]) : -1] == later[:-1]
    assert "3 cases converted, 0 there already, 1 refused" in said
    assert any(line.startswith("size ") and "in 4 files" in line and line.endswith("in 87") for line in later)
    assert "refused    PanTS_00000003: ct.nii.gz: empty file (0 bytes)" in later
    assert any(line.startswith("note       pancreas differs from head, body and tail") for line in later)
    rows = {line.split()[1]: line.split()[2:] for line in later if "Hospital" in line}
    assert rows == {"B": ["single", "2", "1", "1", "2"], "C": ["single", "1", "1", "0", "1"]}


def test_verify_says_whole_or_names_the_damage(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Exit code 0 and "whole"; after one flipped byte 1 and one line with the case."""
    store = make_store(tmp_path / "s", cases=2)
    assert cli.main(["verify", str(store)]) == 0
    assert "whole" in capsys.readouterr().out
    path = store / "cases" / "PanTS_00000002.ozx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert cli.main(["verify", str(store)]) == 1
    damaged = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("Next: ")]
    assert len(damaged) == 1 and damaged[0].startswith("PanTS_00000002: ")


def test_doctor_ends_well_here(capsys: pytest.CaptureFixture) -> None:
    """On a machine that can run the tests nothing required is missing."""
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "torch" in text and "/dev/shm" in text and text.splitlines()[-1] == "Next: pants-dist demo"


def test_an_interrupt_is_one_line_and_130(tmp_path: Path) -> None:
    """Ctrl-C on long work: no traceback, and the advice to give the same command again."""
    command = [sys.executable, "-m", "pants_dist", "phantom", str(tmp_path / "p"), "--cases", "500", "--centers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "p").rglob("ct.nii.gz")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "pants-dist: interrupted; the same command goes on where it stopped"
    assert "Traceback" not in said


def test_a_closed_pipe_is_no_traceback(store: Path) -> None:
    """`pants-dist info STORE | head -1` ends quietly."""
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from pants_dist.cli import main; sys.exit(main(sys.argv[1:]))"
    said = subprocess.run(
        [sys.executable, "-c", code, "info", str(store)], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert said.stderr == ""
