"""One run folder to one run on W&B, in a process of its own: `python -m pants_dist.mirror RUN --patience SECONDS`.

The run folder is the truth. The server is asked which step it has last, and is sent what metrics.jsonl has after it, each
step once: nothing is lost and nothing comes twice, whatever was killed, resumed or sent before. It goes on until its
standard input has an end or a word, then sends what is left. Training neither waits for W&B nor imports it. With `--offline`
nothing is sent: all of metrics.jsonl is written anew as one folder of W&B's own, which "wandb sync" sends from elsewhere.

This rests on resume="allow" and log(step=...), https://docs.wandb.ai/guides/runs/resuming. W&B's own offline folders would
not do as a run goes on: a killed process leaves them without their last rows, and "wandb sync" of those of several attempts
numbers all rows anew, those that a resumed run did again among them.
"""

import argparse
import fcntl
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import pandas as pd

from pants_dist import config
from pants_dist.errors import UserError
from pants_dist.pictures import Plane, read_plane
from pants_dist.tracking import (
    UPLOADED,
    evaluation_stamp,
    logged_bytes,
    read_metrics,
    read_summary,
    validation_folder,
    write_atomically,
)  # fmt: skip

Mode = Literal["online", "offline"]
X_AXIS = "trainer/global_step"
CONNECT_S = 30.0  # at most, to reach the server
POLL_S = 5.0  # between looks at a run that goes on
RETRY_S = 60.0  # before a server that did not answer is asked again
CONFIRM_S = 10.0  # at most, until the server says that it has all
SILENT_S = 3600.0  # without a heartbeat, after which a run is taken for killed
LATER = 'nothing is lost: "pants-dist sync" sends the rest'


def mirror(run: Path, patience_s: float) -> dict[str, Any]:
    """Send what W&B lacks of a run, and what it logs until standard input is closed. Returns the `steps` sent, and `url`.

    Raises UserError where W&B does not take it: no account, no answer in `patience_s`, another process is sending it.
    """
    with _alone(run) as wandb_id:
        with _at_wandb(run, wandb_id, patience_s) as there:
            first, steps, told = there.starting_step, 0, False
            while not told:
                told = _told_to_end(POLL_S)
                over, size = _is_over(run), logged_bytes(run)
                for row in rows_from(run, first, with_last=over):
                    there.log(payload(run, row), step=row["step"])
                    first, steps = row["step"] + 1, steps + 1
            scored, stamp = over and evaluated(run), evaluation_stamp(run)
            if scored:
                there.summary.update(scored)
        if steps:
            _confirm(run, wandb_id, first - 1, patience_s)
        if over:
            write_atomically(run / UPLOADED, f"{size} {stamp}")
        return {"steps": steps, "url": there.url}


def written(run: Path) -> dict[str, Any]:
    """Write a run as one offline folder of W&B's own, in place of any before. Returns `steps` and `url`, its path."""
    with _alone(run) as wandb_id:
        shutil.rmtree(run / "wandb", ignore_errors=True)
        rows = rows_from(run, 0, with_last=True)
        with _at_wandb(run, wandb_id, CONNECT_S, "offline") as there:
            for row in rows:
                there.log(payload(run, row), step=row["step"])
            there.summary.update(evaluated(run))
            folder = Path(there.dir).parent
        return {"steps": len(rows), "url": str(folder)}


def _confirm(run: Path, wandb_id: str, last_step: int, patience_s: float) -> None:
    """Ask the server what it has now: the client says nothing where rows are refused. Raises UserError if it lacks some."""
    give_up = time.monotonic() + min(patience_s, CONFIRM_S)
    while True:
        with _at_wandb(run, wandb_id, patience_s) as there:
            has = there.starting_step - 1
        if has >= last_step:
            return
        if time.monotonic() > give_up:
            raise UserError(f"the server has step {max(has, 0):,} as its last, not {last_step:,}; {LATER}")
        time.sleep(1)


def rows_from(run: Path, first_step: int, with_last: bool) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl from this step on. The last is left for later where the run goes on: validation may add to it."""
    rows = read_metrics(run)
    return [row for row in (rows if with_last else rows[:-1]) if row["step"] >= first_step]


def payload(run: Path, row: dict[str, Any]) -> dict[str, Any]:
    """What W&B is given of a row: its metrics, when they were logged, and after a validation its table and pictures."""
    metrics = {name: value for name, value in row.items() if "/" in name}
    given = {**metrics, X_AXIS: row["step"], "_timestamp": row["time"]}
    folder = validation_folder(run, row["step"])
    if "val/dsc" not in row or not (folder / "centers.parquet").is_file():
        return given
    return given | shown(folder, "val/")


def evaluated(run: Path) -> dict[str, Any]:
    """The same of the evaluation, by split: for W&B's summary, since it belongs to no step."""
    folders = [table.parent for table in sorted(run.glob("evaluation/*/centers.parquet"))]
    return {name: value for folder in folders for name, value in shown(folder, f"evaluation/{folder.name}/").items()}


def shown(folder: Path, prefix: str) -> dict[str, Any]:
    """A folder's table by center, and its worst cases as images with masks."""
    import wandb

    found: dict[str, Any] = {}
    with _if_readable(folder / "centers.parquet"):
        found[f"{prefix}centers"] = wandb.Table(dataframe=pd.read_parquet(folder / "centers.parquet"))
    pictures = []
    for path in sorted((folder / "worst").glob("*.npz")):
        with _if_readable(path):
            pictures.append(_picture(read_plane(path)))
    return found | ({f"{prefix}worst": pictures} if pictures else {})


@contextmanager
def _if_readable(path: Path) -> Iterator[None]:
    """Go on without a file that is damaged or gone, with a line that says so."""
    try:
        yield
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        print(f"pants-dist: W&B: {path} is left out ({type(error).__name__})", file=sys.stderr, flush=True)


def _picture(plane: Plane) -> Any:
    import wandb

    labels = dict(enumerate(plane.structures, start=1))
    masks = {"reference": plane.reference_yx, "prediction": plane.prediction_yx}
    return wandb.Image(
        plane.gray_yx, caption=plane.title,
        masks={name: {"mask_data": mask, "class_labels": labels} for name, mask in masks.items()},
    )  # fmt: skip


@contextmanager
def _at_wandb(run: Path, wandb_id: str, patience_s: float, mode: Mode = "online") -> Iterator[Any]:
    """The run on W&B, begun or gone on with; at the end all is sent, or UserError raised after `patience_s`."""
    folder = run / "wandb"  # all that is staged; nothing of it is needed once it is sent
    folder.mkdir(exist_ok=True)
    os.environ |= {"WANDB_DIR": str(run), "WANDB_DATA_DIR": str(folder), "WANDB_CACHE_DIR": str(folder), "WANDB_SILENT": "true"}
    tempfile.tempdir = str(folder)
    import wandb

    quiet = wandb.Settings(
        console="off", disable_git=True, disable_code=True, x_disable_stats=True, x_disable_meta=True,
        x_save_requirements=False, init_timeout=min(patience_s, CONNECT_S), finish_timeout=patience_s,
        finish_timeout_raises=True,
    )  # fmt: skip
    try:
        there = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "pants-dist"), name=run.name, id=wandb_id, dir=run,
            config=facts(run), mode=mode, resume="allow" if mode == "online" else None, settings=quiet,
        )  # fmt: skip
        there.define_metric(X_AXIS)
        there.define_metric("*", step_metric=X_AXIS)
        yield there
        there.finish()
    except (wandb.Error, TimeoutError) as error:
        raise UserError(f"{' '.join(str(error).split())}; {LATER}") from error
    if mode == "online":
        shutil.rmtree(folder, ignore_errors=True)


def facts(run: Path) -> dict[str, Any]:
    """W&B's config of a run: its settings, the code and the store as config.yaml begins with, and what it ran on."""
    path = run / "config.yaml"
    about = path.read_text().partition("\n")[0].removeprefix("# ")
    return {**asdict(config.load(path, [])), "about": about, "machine": read_summary(run).get("machine", {})}


def _is_over(run: Path) -> bool:
    """Whether nothing more is to come of this attempt: it has said so, or was killed long ago."""
    summary = read_summary(run)
    return summary.get("state") != "running" or time.time() - summary["heartbeat"] > SILENT_S


@contextmanager
def _alone(run: Path) -> Iterator[str]:
    """The run's one id on W&B, drawn at first. Raises UserError where another process is sending this run."""
    with open(run / "wandb-id", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("another process is uploading this run; let it end") from None
        file.seek(0)
        if not (drawn := file.read()):
            drawn = os.urandom(4).hex()
            file.write(drawn)
            file.flush()
        yield drawn


def _told_to_end(within_s: float) -> bool:
    return bool(select.select([sys.stdin], [], [], within_s)[0])


def main() -> int:
    """Returns 0 when all was sent, else 1, with the reason on stderr; asks again while there is somebody to do it for."""
    parser = argparse.ArgumentParser(prog="python -m pants_dist.mirror")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--patience", type=float, required=True, help="seconds to wait for the server, once all is said")
    parser.add_argument("--offline", action="store_true", help="send nothing")
    given = parser.parse_args()
    if given.offline:
        print(json.dumps(written(given.run)))
        return 0
    if not _told_to_end(0):  # signals to the whole job are not for us: the run that we follow says when it ends
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    said = ""
    while True:
        try:
            print(json.dumps(mirror(given.run, given.patience)))
            return 0
        except UserError as error:
            if str(error) != said:
                print(f"pants-dist: W&B: {error}", file=sys.stderr, flush=True)
            said = str(error)
        if _told_to_end(RETRY_S):
            return 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # W&B's own way out would wait for a server that does not answer
