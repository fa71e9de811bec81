import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from small import make_store, write_small_case
from sources import files_of, write_pants

from pants_dist import __version__, cli, memory, splits, store
from pants_dist.errors import UserError
from pants_dist.jobs import indices, run_here
from pants_dist.pipeline import check_array, command_stage, convert_stages, folder_of, still_to_do, sweep, train_stage
from pants_dist.site import Site
from pants_dist.store import write_manifest
from pants_dist.submit import Job, Resources, render

GOLDEN = Path(__file__).parent / "golden"
CWD = Path("/home/ada/pancreas")
SITE = Site(
    partition="gpu", account="ct", modules=("cuda/12.4",), setup=("ulimit -c 0",), scratch="/local", interface="ib0",
    environment_path="/opt/pants-dist",
)  # fmt: skip
TARBALL = replace(SITE, environment="tarball", environment_path="/project/env.tar")
ASKED = Resources(nodes=2, gpus_per_node=4, cpus_per_task=32, mem="240G", time="8:00:00", gpu_type="a100", constraint="ib")
RUN = Path("runs/first")
SLICES, MANIFEST = convert_stages(("convert", "/data/PanTS", "store"), Path("store"), 8, Resources(), CWD)
GOLD = {
    "train": (train_stage([RUN], RUN, None, ASKED, CWD), SITE),
    "sweep": (train_stage([RUN / "lr=1", RUN / "lr=2"], RUN, 1, ASKED, CWD), Site(environment_path="/opt/pants-dist")),
    "slices": (SLICES, SITE),
    "manifest": (MANIFEST, SITE),
    "parts": (command_stage("evaluate", ("evaluate", "runs/first"), RUN, ASKED, CWD, 4), SITE),
    "evaluate": (command_stage("evaluate", ("evaluate", "runs/first"), RUN, replace(ASKED, after="12"), CWD), TARBALL),
}


@pytest.mark.parametrize("name", GOLD)
def test_scripts_are_the_golden_ones(name: str) -> None:
    """Word for word; to change them on purpose: UPDATE_GOLDEN=1 pytest tests/test_submit.py, then read the difference."""
    stage, site = GOLD[name]
    text = render(stage.job, stage.resources, site).replace(f"pants-dist {__version__}", "pants-dist VERSION", 1)
    path = GOLDEN / f"{name}.sbatch"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.skipif(not shutil.which("shellcheck") and not os.environ.get("CI"), reason="no shellcheck here")
@pytest.mark.parametrize("name", GOLD)
def test_shellcheck_has_nothing_to_say(name: str) -> None:
    """Not even a matter of style. In CI it is there."""
    done = subprocess.run(["shellcheck", GOLDEN / f"{name}.sbatch"], capture_output=True, text=True)
    assert done.stdout == ""


HOSTILE = ["a b", "a'b", 'a"b', "a;touch hit", "$(touch hit)", "`touch hit`", "a#b & touch hit", "ü %j*?[", "!x ~ {a,b}"]


@pytest.fixture
def echoing(tmp_path: Path) -> Site:
    """A site whose "Python" writes its words to the file `said`, one a line."""
    program = tmp_path / "my env; $(touch hit)" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\nimport sys\nopen('said', 'w').write('\\n'.join(sys.argv[1:]))\n")
    program.chmod(0o755)
    return Site(environment_path=str(program.parent.parent), scratch=str(tmp_path / "$(touch hit)"))


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_words_reach_the_program_unchanged(hostile: str, echoing: Site, tmp_path: Path) -> None:
    """As stage, folder, working folder and word: the script runs, the program gets the very words, nothing else happens."""
    cwd = tmp_path / hostile
    cwd.mkdir()
    stage = command_stage(hostile, ("report", hostile, f"--out={hostile}"), Path(hostile), Resources(), cwd)
    assert run_here([stage], echoing) == 0
    assert (cwd / "said").read_text().split("\n") == ["-m", "pants_dist", "report", hostile, f"--out={hostile}"]
    assert not list(tmp_path.rglob("hit"))
    train = train_stage([Path("runs") / hostile], Path("runs") / hostile, None, Resources(), cwd)
    assert run_here([train], echoing) == 0
    words = ["train", "--config", f"runs/{hostile}/config.yaml", "--run-name", hostile]
    assert (cwd / "said").read_text().split("\n") == ["-m", "pants_dist", *words]
    assert not list(tmp_path.rglob("hit")) and (cwd / "runs" / hostile / "done" / "train").exists()


@pytest.mark.parametrize(("name", "says"), [("a\nb", "line break"), ("a\tb", "control character"), ("a\\b", "backslash")])
def test_what_no_script_can_carry_is_refused(name: str, says: str) -> None:
    """Control characters would end a line of the script; sbatch drops backslashes."""
    with pytest.raises(UserError, match=says):
        render(Job(template="job", stage="report", folder=Path(name), cwd=CWD), Resources(), SITE)


def options(resources: Resources, site: Site = Site()) -> dict[str, str]:  # noqa: B008
    stage = command_stage("evaluate", ("evaluate", "r"), RUN, resources, CWD)
    text = render(stage.job, stage.resources, site)
    words = [shlex.split(line)[1] for line in text.splitlines() if line.startswith("#SBATCH")]
    return {word.partition("=")[0]: word.partition("=")[2] for word in words}


def test_what_is_asked_wins_over_the_site() -> None:
    """--sbatch.NAME, then the verb's option, then the site's entry; each option stands once; "" has no value."""
    site = Site(partition="a", sbatch={"comment": "x", "exclusive": "", "time": "1:00"})
    assert options(Resources(), site)["--partition"] == "a" and options(Resources(), site)["--exclusive"] == ""
    asked = Resources(partition="b", time="2:00", sbatch={"comment": "a b; c", "partition": "c"})
    found = options(asked, site)
    assert (found["--partition"], found["--time"], found["--comment"]) == ("c", "2:00", "a b; c")
    assert options(Resources(cpus_per_task=8))["--mem"] == "32G"


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [(None, 180), ("0", 180), ("8:00:00", 180), ("1-0", 180), ("3", 60), ("3:30", 70), ("0:02:00", 40), ("soon", 180)],
)
def test_a_short_job_is_told_later(limit: str | None, seconds: int) -> None:
    """3 minutes before the end, of less than 9 minutes after two thirds: else a job would stop as it begins, for ever."""
    assert options(Resources(time=limit))["--signal"] == f"B:USR1@{seconds}"


def test_gpus_are_asked_for_as_the_site_takes_it() -> None:
    """As generic resource or per node, with a kind where one is named."""
    assert options(Resources(gpus_per_node=2))["--gres"] == "gpu:2"
    site = Site(ask_gpus_by="gpus-per-node", gpu_type="h100")
    assert options(Resources(gpus_per_node=2), site)["--gpus-per-node"] == "h100:2"
    assert not {"--gres", "--gpus-per-node"} & set(options(Resources(), site))


def test_a_sweep_is_every_combination() -> None:
    """Commas of a list do not separate values; a setting twice, and one without values, are refused."""
    assert sweep([]) == [{}]
    assert sweep(["a=1,2", "b=[x, y],[z]"]) == [
        {"a": first, "b": second} for first in ("1", "2") for second in ("[x, y]", "[z]")
    ]
    for wrong in (["a"], ["a="], ["a=1", "a=2"]):
        with pytest.raises(UserError, match="--sweep"):
            sweep(wrong)


def test_arrays_have_room_or_are_refused() -> None:
    """Indices of a specification; more elements than MaxArraySize allows are refused with the number."""
    assert indices("1-3,7%2") == [1, 2, 3, 7]
    with pytest.raises(UserError, match="--slices 30: 30 array elements, but this SLURM takes 19"):
        check_array(30, 19, "--slices 30")


def test_slices_here_are_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--local runs the array's script slice by slice, then the manifest's: the files of one process, byte for byte.

    A slice that failed, known by its missing mark, is run again alone; then the stage that needs it.
    """
    monkeypatch.chdir(tmp_path)
    source = write_pants(tmp_path / "Pan TS", [1, 2, 3], shape_ijk=(8, 9, 10))
    assert cli.main(["submit", "convert", str(source), "store", "--slices", "2", "--local"]) == 0
    assert cli.main(["convert", str(source), "whole"]) == 0
    assert files_of(Path("store")) == files_of(Path("whole"))
    done = Path("runs/convert-store/done")
    assert sorted(path.name for path in done.iterdir()) == ["convert-1-of-2", "convert-2-of-2", "manifest"]
    for name in ("convert-2-of-2", "manifest"):
        (done / name).unlink()
    words = ("convert", str(source), "store")
    left = convert_stages(words, Path("store"), 2, Resources(), tmp_path)
    assert [(stage.job.stage, stage.job.array) for stage in left] == [("convert", "2"), ("manifest", None)]
    (done / "convert-2-of-2").touch()
    assert [stage.job.stage for stage in convert_stages(words, Path("store"), 2, Resources(), tmp_path)] == ["manifest"]
    (done / "manifest").touch()
    again = convert_stages(words, Path("store"), 2, Resources(), tmp_path)
    assert [stage.job.array for stage in again] == ["1-2", None]


def test_stores_of_one_name_have_folders_of_their_own() -> None:
    """Slices of another store that are done are none of this one's."""
    found = [folder_of("convert", Path(path), CWD).name for path in ("store", "./b/store", "/data/store", "../x/store", ".")]
    assert found == ["convert-store", "convert-b-store", "convert-data-store", "convert-home-ada-x-store", "convert-pancreas"]


def test_a_pipeline_goes_on_where_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages before the first without a mark are passed over; with none left it says what to remove."""
    monkeypatch.chdir(tmp_path)
    stages = [command_stage(name, (name,), RUN, Resources(), tmp_path) for name in ("verify", "evaluate", "report")]
    (RUN / "done").mkdir(parents=True)
    (RUN / "done" / "verify").touch()
    (RUN / "done" / "report").touch()
    assert [stage.job.stage for stage in still_to_do(stages)] == ["evaluate", "report"]
    (RUN / "done" / "evaluate").touch()
    with pytest.raises(UserError, match="every stage is done; to begin anew remove runs/first/done"):
        still_to_do(stages)


BAD = [
    (["submit", "trian"], "invalid choice: 'trian'"),
    (["submit", "train", "--config", "debug", "--nodse", "2"], "no option --nodse; did you mean '--nodes'?"),
    (["submit", "train", "--config", "debug", "--optm.lr=3"], "no option --optm.lr; did you mean '--optim.lr'?"),
    (["submit", "train", "--config", "debug", "--data.store", "nowhere"], "store nowhere: no such folder"),
    (
        ["submit", "train", "--config", "debug", "--sweep", "optim.lrr=1"],
        "--sweep: no setting 'optim.lrr'; did you mean 'optim.lr'?",
    ),
    (["submit", "evaluate", "runs/x", "--sweep", "optim.lr=1"], "submit evaluate: --sweep is for train; leave it out"),
    (["submit", "train", "--config", "debug", "--slices", "3"], "--slices is for convert, evaluate, pipeline"),
    (["submit", "report", "runs/x", "--nodes", "2"], "--nodes is for convert, train, evaluate, pipeline"),
    (["submit", "convert", "nowhere", "s"], "source nowhere: no such folder"),
    (["submit", "evaluate", "runs/x", "--cluster", "none"], "--cluster none: no such file"),
    (["status", "nowhere"], "runs nowhere: no such folder"),
    (["logs", "nowhere"], "run nowhere: nothing was submitted for it"),
]


@pytest.mark.parametrize(("words", "says"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_line(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Before anything is asked of SLURM or written."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and says in lines[0]
    assert not list(tmp_path.iterdir())


def configs(text: str) -> dict[str, str]:
    """Run folder -> its config.yaml, of a script that brings them along."""
    found = re.findall(r"^\[ \"\$folder\" != (\S+) \].*?\n(.*?)^END OF CONFIG$", text, re.MULTILINE | re.DOTALL)
    return {shlex.split(run)[0]: config for run, config in found}


def test_dry_run_prints_the_script_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Nothing is written but the folder for the log, and the options reach it: also those of sbatch without a name of ours.

    It brings along the settings, all of them.
    """
    monkeypatch.chdir(tmp_path)
    store = make_store(tmp_path / "store", cases=4)
    words = ["submit", "train", "--config", "debug", "--data.store", str(store), "--nodes", "2", "--train.batch=4"]
    words += ["--gpus-per-node", "2", "--sbatch.begin=now+1hour", "--sbatch.exclusive", "--after", "77", "--dry-run"]
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert text.startswith("#!/bin/bash\n") and subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    for option in ("--begin=now+1hour", "--exclusive", "--dependency=afterok:77", "--nodes=2", "--gres=gpu:2"):
        assert f"#SBATCH {option}\n" in text
    assert {str(path) for path in Path(".").rglob("*") if path.parts[0] != "store"} == {"runs", "runs/debug"}
    settings = yaml.safe_load(configs(text)["runs/debug"])
    assert settings["data"]["store"] == str(store) and settings["train"] | {"batch": 4, "ranks": 2} == settings["train"]


def test_leaving_one_center_out_is_a_run_a_hospital(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The folds of data.leave_one_center_out, whatever else the config holds out; a pool of hospitals is none."""
    monkeypatch.chdir(tmp_path)
    Path("store/cases").mkdir(parents=True)
    rows = [write_small_case(Path("store"), number, f"Center {'ABC'[number % 3]}", 36, 0) for number in range(9)]
    for row in rows[2::3]:
        row |= {"center": "The Cancer Imaging Archive", "center_kind": "pool"}
    write_manifest(Path("store"), rows)
    words = ["submit", "train", "--config", "debug", "--run-name", "x", "--data.store=store", "--data.held_out_fraction=0.5"]
    assert cli.main([*words, "--leave-one-center-out", "--max-running=2", "--dry-run"]) == 0
    text = capsys.readouterr().out
    found = {run: yaml.safe_load(config)["data"] for run, config in configs(text).items()}
    assert {run: (data.get("leave_one_center_out"), data.get("held_out_fraction")) for run, data in found.items()} == {
        "runs/x/000=Center_A": (0, None), "runs/x/001=Center_B": (1, None),
    }  # fmt: skip
    assert "#SBATCH --array=0-1%2\n" in text


def test_what_runs_have_in_common_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 12 folds and of 6 runs of a sweep, as of one: a look for patients, at memory, at each sampled case, at the queue.

    Two folds have their split worked out, those with the most cases held out; of runs on the same data it is one split.
    """
    monkeypatch.chdir(tmp_path)
    Path("store/cases").mkdir(parents=True)
    rows = [write_small_case(Path("store"), number, f"Center {number % 12:02d}", 16, 0) for number in (*range(36), 39, 43)]
    write_manifest(Path("store"), rows)
    for name in ("squeue", "sbatch", "scontrol"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} >>asked\necho 7\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    done: list[str] = []

    def counted(owner: object, name: str, word: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given: (done.append(word), real(*given))[1])

    for owner, name in ((splits, "patients"), (splits, "split_of"), (memory, "step_bytes"), (store.Store, "read_patch")):
        counted(owner, name, name)
    words = ["submit", "train", "--config", "debug", "--data.store=store", "--mem=16G", "--train.ranks=1", "--run-name"]
    once = {"patients": 1, "step_bytes": 1, "read_patch": 38}
    assert cli.main([*words, "folds", "--leave-one-center-out"]) == 0
    assert Counter(done) == once | {"split_of": 2}
    fitted = {path.parent.name: "train" in path.read_text().split("\n")[0] for path in Path("runs/folds").glob("*/config.yaml")}
    assert [name for name, known in sorted(fitted.items()) if known] == ["003=Center_03", "007=Center_07"] and len(fitted) == 12
    assert Path("asked").read_text().split() == ["scontrol", "sbatch", "sbatch"]
    done.clear()
    Path("asked").unlink()
    assert cli.main([*words, "folds", "--leave-one-center-out"]) == 0
    assert Path("asked").read_text().split() == ["scontrol", "squeue", "sbatch", "sbatch"]
    done.clear()
    assert cli.main([*words, "sweep", "--sweep=optim.lr=1e-3,3e-4,1e-4", "--sweep=seed=1,2"]) == 0
    assert Counter(done) == once | {"split_of": 1}


def test_the_job_s_memory_counts_and_not_the_login_node_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A patch has to fit into what the job asks for; nothing is known here of the memory of the nodes' GPUs."""
    monkeypatch.chdir(tmp_path)
    store = make_store(tmp_path / "store", cases=4)
    monkeypatch.setattr("pants_dist.cluster.memory_limit", lambda: 1 << 20)  # of this login node
    words = ["submit", "train", "--config", "debug", "--data.store", str(store), "--dry-run", "--train.ranks=1"]
    assert cli.main([*words, "--mem", "16G"]) == 0
    assert cli.main([*words, "--gpus-per-node=2"]) == 0
    assert cli.main([*words, "--mem", "20M"]) == 2
    assert "a rank's share of the job's memory has 0.0 GB" in capsys.readouterr().err
