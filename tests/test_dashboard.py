"""The dashboard without a browser: run folders read, the door guarded, slices drawn, one file exported."""

import io
import json
import re
import shutil
import socket
import threading
import time
import tracemalloc
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from small import make_store
from watched import EVIL, TOKEN, keep_predictions, write_run

from pants_dist.dashboard import folders, lines, plots, server, slices
from pants_dist.dashboard.export import export
from pants_dist.dashboard.runs import Heartbeats, run_rows
from pants_dist.dashboard.server import listen, make_app
from pants_dist.dashboard.slices import PLANES, WINDOWS_HU, focus_of, kept_of, slice_png
from pants_dist.disk import on_network
from pants_dist.errors import UserError
from pants_dist.store import open_store

GREEN, ORANGE = (31, 209, 165), (255, 138, 31)


def test_steps_done_again_count_once(tmp_path: Path) -> None:
    """After a requeue the later attempt's lines stand, the requeue is marked, and a torn last line is left out."""
    lines = [(1, 10, 1.0), (1, 20, 0.9), (1, 30, 0.8), (2, 20, 0.7), (2, 30, 0.6)]
    text = "".join(json.dumps({"step": s, "attempt": a, "time": 0.0, "train/loss": y}) + "\n" for a, s, y in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 40, "att')
    curves = folders.curves_of(tmp_path)
    assert curves.series("train/loss") == ([10, 20, 30], [1.0, 0.7, 0.6])
    assert curves.requeues == [20] and curves.notes == []


@pytest.mark.parametrize(("x", "place"), [("step", 20.0), ("samples", 120.0), ("time", 3.0)])
def test_requeues_are_dashed_lines_on_every_axis(tmp_path: Path, x: str, place: float) -> None:
    """Where the later attempt began: its step, its samples, or the hours since the run's first line."""
    lines = [(1, 10, 0.0), (1, 20, 3600.0), (1, 30, 7200.0), (2, 20, 10_800.0), (2, 30, 14_400.0)]
    text = "".join(json.dumps({"step": s, "attempt": a, "time": t, "train/loss": 1.0}) + "\n" for a, s, t in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    (tmp_path / "config.yaml").write_text("train: {batch: 6}\n")
    figure = plots.curves_figure({"r": folders.curves_of(tmp_path)}, ("train/loss",), 0.5, x, dark=False)
    assert [(line.x0, line.x1, line.line.dash) for line in figure.layout.shapes] == [(place, place, "dash")]


def test_waiting_for_data_is_shaded() -> None:
    """From half way before to half way behind the lines where more than the share was waited; not the first line."""
    assert plots.bands([0, 10, 20, 30, 40], [0.9, 0.1, 0.5, 0.6, 0.1], above=0.3) == [(15, 35)]
    assert plots.bands([0, 10, 20], [0.9, 0.1, 0.5], above=0.3) == [(15, 20)]


def test_long_curves_are_thinned_and_keep_their_spikes(tmp_path: Path) -> None:
    """Of 20,000 lines at most 1,000 points are sent, among them the only spike; of a huge file the end is read."""
    values = [1.0] * 20_000
    values[12_345] = 9.0
    x, y = folders.thinned(range(20_000), values)
    assert len(x) <= folders.MOST_POINTS and (12_345, 9.0) in zip(x, y, strict=True)


def test_bytes_read_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a metrics.jsonl above the limit a part is read that is spread over all of it, and the page says so."""
    row = {"attempt": 1, "time": 0.0, "train/loss": 1.0}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row | {"step": step}) + "\n" for step in range(60_000)))
    monkeypatch.setattr(lines, "MOST_BYTES", 2**20)
    curves = folders.curves_of(tmp_path)
    steps = [row["step"] for row in curves.rows]
    assert steps[0] == 0 and steps[-1] == 59_999 and 10_000 < len(steps) < 20_000 and steps == sorted(steps)
    assert max(after - before for before, after in zip(steps, steps[1:], strict=False)) < 60_000 / 8
    assert curves.notes == ["metrics.jsonl: of 4 MB 1 are shown, spread evenly"]


def test_what_has_come_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is taken when its end is written; a file that takes another's place is read anew; a damaged line is counted."""
    path, taken = tmp_path / "metrics.jsonl", []
    monkeypatch.setattr(lines, "parsed", lambda line, parse=lines.parsed: taken.append(line) or parse(line))
    row = {"attempt": 1, "time": 0.0, "train/loss": 1.0}
    path.write_text("".join(json.dumps(row | {"step": step}) + "\n" for step in range(100)) + '{"step": 1')
    assert len(folders.curves_of(tmp_path).rows) == 100 and len(taken) == 100
    with open(path, "a") as file:
        file.write('00, "attempt": 1, "time": 0.0}\n{"step": 101, "attempt"}\n')
    curves = folders.curves_of(tmp_path)
    assert curves.rows[-1]["step"] == 100 and len(taken) == 102 and "1 lines cannot be read" in curves.notes[0]
    (tmp_path / "new").write_text(json.dumps(row | {"step": 7}) + "\n")
    (tmp_path / "new").replace(path)
    assert [row["step"] for row in folders.curves_of(tmp_path).rows] == [7]
    path.unlink()
    assert folders.curves_of(tmp_path).notes == ["metrics.jsonl: No such file or directory"]


def test_smoothing_starts_without_bias() -> None:
    """A constant stays itself; two values are weighted as by hand: (0.5 * 0.5 * 1 + 0.5 * 3) / 0.75."""
    assert folders.smoothed([2.0, 2.0, 2.0], 0.9) == pytest.approx([2.0, 2.0, 2.0])
    assert folders.smoothed([1.0, 3.0], 0.5) == pytest.approx([1.0, 1.75 / 0.75])


def test_damage_becomes_a_note(tmp_path: Path) -> None:
    """A malformed table, a damaged summary and a folder that has gone leave notes, and nothing is raised."""
    (tmp_path / "evaluation" / "test").mkdir(parents=True)
    (tmp_path / "evaluation" / "test" / "cases.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "summary.json").write_text("{")
    assert "cases.parquet" in folders.results_of(tmp_path).notes[0]
    assert folders.summary_of(tmp_path)[1].startswith("summary.json cannot be read")
    assert folders.curves_of(tmp_path / "gone").notes == ["metrics.jsonl: No such file or directory"]


@pytest.mark.parametrize("name", ["../secret", "run/../../secret", "/etc", "link"])
def test_paths_outside_are_refused(tmp_path: Path, name: str) -> None:
    """Neither dots, nor an absolute path, nor a link leads out of RUNS."""
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="outside"):
        folders.run_folder(runs, name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dashboard") / "runs"
    write_run(folder / "first")
    store = make_store(folder.parent / "store", cases=6)
    write_run(folder / EVIL.replace("/", ""))
    for run in folder.iterdir():
        (run / "config.yaml").write_text(f"data: {{store: {store}}}\ntrain: {{batch: 2}}\n")
    keep_predictions(folder / "first", store)
    return folder


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    server = listen(runs, 0, TOKEN)
    threading.Thread(target=server.run, daemon=True).start()
    yield f"http://127.0.0.1:{server.effective_port}"
    server.close()


GUARDED = ["/", "/?token=wrong", "/assets/page.css", "/_dash-layout", "/_dash-dependencies", "/picture/a"]


@pytest.mark.parametrize("path", GUARDED)
def test_no_token_no_answer(address: str, path: str) -> None:
    """Without the token all is 403: the page, its assets, its call-backs, pictures."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(address + path)
    assert refused.value.code == 403


def test_every_address_of_the_page_is_guarded(runs: Path) -> None:
    """Whatever routes Dash and we have, by every method, known or not: 403 without the token, also with a part of it."""
    server = make_app(runs, TOKEN).server
    rules = {re.sub("<[^>]*>", "x", rule.rule): rule.methods or set() for rule in server.url_map.iter_rules()}
    assert {"/", "/picture/x", "/slice/x", "/_dash-update-component", "/assets/x"} <= set(rules)
    client = server.test_client()
    for cookie in ("", TOKEN[:-1], TOKEN + "t"):
        client.set_cookie("pants_dist_" + TOKEN[:6], cookie)
        for path, methods in (*rules.items(), ("/nowhere", {"GET"})):
            assert {client.open(path, method=method).status_code for method in methods} == {403}, path


def test_the_token_becomes_a_cookie(runs: Path) -> None:
    """The address loses the token; the cookie is HttpOnly and SameSite; call-backs and foreign hosts are refused."""
    client = make_app(runs, TOKEN).server.test_client()
    assert client.post("/_dash-update-component", json={}).status_code == 403
    answer = client.get(f"/?token={TOKEN}")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    assert "HttpOnly" in answer.headers["Set-Cookie"] and "SameSite=Strict" in answer.headers["Set-Cookie"]
    assert client.get("/").status_code == 200
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 403
    assert client.get("/picture/first/summary.json").status_code == 404
    assert client.get("/picture/..%2f..%2fetc/worst/x.png").status_code == 404


def test_only_loopback_and_free_ports(address: str, runs: Path) -> None:
    """The server listens on 127.0.0.1; a port that is taken is refused in one line."""
    with pytest.raises(UserError, match="leave it out"):
        listen(runs, int(address.rpartition(":")[2]), TOKEN)


def test_the_address_and_the_tunnels_are_said(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The address has the token; ssh -N -L leads to its port; on a compute node -J names the host it was submitted from."""
    monkeypatch.setattr(server, "listen", lambda *_: type("Made", (), {"effective_port": 4321, "run": lambda self: None})())
    monkeypatch.setenv("SLURM_SUBMIT_HOST", "login7")
    server.serve(runs, 0)
    opened, tunnel, jump = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"Open http://127\.0\.0\.1:4321/\?token=[\w-]{43}", opened)
    host = socket.gethostname()
    assert tunnel.endswith(f"ssh -N -L 4321:127.0.0.1:4321 {host}")
    assert jump.endswith(f"ssh -N -J login7 -L 4321:127.0.0.1:4321 {host}")


def test_export_is_one_file_with_names_escaped(runs: Path, tmp_path: Path) -> None:
    """The file loads nothing from elsewhere and holds every run; a center named like a tag stays text."""
    before = sorted((path, path.stat().st_mtime_ns) for path in runs.rglob("*"))
    export(runs, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<h1>first</h1>" in text and "&lt;img src=x" in text and "<td><img" not in text
    assert "<script src" not in text and "<link" not in text
    assert before == sorted((path, path.stat().st_mtime_ns) for path in runs.rglob("*"))
    assert text.count("src='data:image/png;base64,") == 6  # the worst cases
    assert "12.0" in text and "<td>running</td>" in text  # the table of runs


def test_a_run_is_a_line_from_its_summary_alone(tmp_path: Path) -> None:
    """Rate, hours left, last validation, worst center; a damaged summary, or a folder that is gone, is said in its line."""
    tracker = write_run(tmp_path / "a", steps=40)
    (tmp_path / "a" / "config.yaml").write_text("train: {batch: 6}\n")
    tracker.log(41, {"val/dsc": 0.8, "val_ood/dsc": 0.65, "val/center/Center 0/dsc": 0.9, "val/center/Center 3/dsc": 0.4})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "summary.json").write_text('{"state":')
    shutil.rmtree(tmp_path / "a" / "evaluation")
    (tmp_path / "a" / "metrics.jsonl").unlink()
    row, damaged, gone = run_rows(tmp_path, ["a", "b", "c"], Heartbeats(tmp_path))
    assert (row["state"], row["step"], row["requeues"], row["gap"], row["wait"]) == ("running", 41, 0, 15.0, 5.0)
    assert (row["left_s"], row["left"], row["worst"]) == (59 * 6 / 12.0, "30 s", "Center 3 0.400")
    assert "cannot be read" in damaged["state"] and gone["state"] == "summary.json is not there"


def test_silence_is_measured_by_the_reader_s_clock(tmp_path: Path) -> None:
    """A heartbeat that has not changed for 60 s is silence, whatever time it says; on a network disk it takes 180 s."""
    beats, now = Heartbeats(tmp_path), time.time()
    assert beats.patience_s == 60 and beats.age_s("r", 1.0, now - 500) > 499
    assert beats.age_s("r", 2.0, now - 500) < 1
    mounts = tmp_path / "mounts"
    mounts.write_text(f"tmpfs / tmpfs rw 0 0\nserver:/x {str(tmp_path)} nfs4 rw 0 0\n")
    assert on_network(tmp_path / "runs", mounts) and not on_network(Path("/etc"), mounts)


def test_a_slice_is_the_store_s(runs: Path) -> None:
    """Every plane: the voxels of the stored CT in the window asked for, turned as seen, pixels square; edges are colored."""
    store = open_store(runs.parent / "store")
    case = store.cases[0]
    image, codes = store.read_patch(case, (0, 0, 0), store.shape_zyx(case))
    low, high = WINDOWS_HU["bone"]
    for axis, plane in enumerate(PLANES):
        index = store.shape_zyx(case)[axis] // 2
        pixels = imread(io.BytesIO(slice_png(runs, "first", case, plane, index, "bone")))[..., :3]
        gray = ((image.take(index, axis) - low) / (high - low)).clip(0, 1)[::-1, ::-1]
        sizes = [n * mm for n, mm in zip(store.shape_zyx(case), store.spacing_mm_zyx(case), strict=True)]
        rows, columns = (size for n, size in enumerate(sizes) if n != axis)
        assert pixels.shape[0] / pixels.shape[1] == pytest.approx(rows / columns, rel=0.05)
        assert pixels[0, 0] == pytest.approx(np.full(3, gray[0, 0]), abs=0.01)
        outlined = (np.ptp(pixels, axis=2) > 0.1).any()
        assert outlined == bool(np.isin(codes.take(index, axis), (2, 3)).any())


def test_what_was_predicted_is_outlined(runs: Path) -> None:
    """Orange where the kept mask has its edge and green where the reference has, each outside of the other's."""
    store, kept = open_store(runs.parent / "store"), kept_of(runs / "first", "PanTS_00000002")
    assert kept and kept.shape_zyx == store.shape_zyx("PanTS_00000002")
    z = focus_of(runs, "first", "PanTS_00000002")[0]
    picture = imread(io.BytesIO(slice_png(runs, "first", "PanTS_00000002", "axial", z, "bone")))[..., :3]
    green, orange = ((np.abs(picture - np.array(color) / 255) < 0.01).all(axis=2) for color in (GREEN, ORANGE))
    assert green.sum() > 50 and orange.sum() > 50
    columns = [np.flatnonzero(found.any(axis=0)) for found in (green, orange)]
    assert columns[1].min() < columns[0].min()  # moved along x, which runs to the left as seen
    without = imread(io.BytesIO(slice_png(runs, EVIL.replace("/", ""), "PanTS_00000002", "axial", z, "bone")))[..., :3]
    assert not (np.abs(without - np.array(ORANGE) / 255) < 0.01).all(axis=2).any()


def test_a_slice_takes_no_volume_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a case of 256^3 voxels, 34 MB of HU and 17 MB of codes, a slice across any axis takes less than 12 MB: its chunks."""
    monkeypatch.setattr(slices, "PIXELS", 1)  # what enlarging a picture takes has nothing to do with the volume
    store = make_store(tmp_path / "store", cases=1, edge=256)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "config.yaml").write_text(f"data: {{store: {store}}}\n")
    for plane in PLANES:
        asked = (tmp_path / "runs", "a", "PanTS_00000001", plane, 100, "bone")
        slice_png(*asked)  # what is loaded once
        tracemalloc.start()
        slice_png(*asked)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 12 * 2**20


def test_pictures_of_worst_cases_are_drawn_like_slices(runs: Path) -> None:
    """The plane kept beside a picture, without the words that are burnt into the PNG; the PNG where there is no plane."""
    client = make_app(runs, TOKEN).server.test_client()
    client.get(f"/?token={TOKEN}")
    png = next((runs / "first").glob("*/*/worst/*.png"))
    address = f"/picture/first/{png.relative_to(runs / 'first')}"
    assert client.get(address).data not in (b"", png.read_bytes())
    png.with_suffix(".npz").rename(png.with_suffix(".hidden"))
    assert client.get(address).data == png.read_bytes()
    png.with_suffix(".hidden").rename(png.with_suffix(".npz"))


@pytest.mark.parametrize(("asked", "says"), [
    ({"case": "../x"}, "not in the store"), ({"plane": "oblique"}, "no such plane"), ({"index": 999}, "the case has"),
    ({"window": "x"}, "no such plane or window"), ({"name": "../elsewhere"}, "lies outside"),
])  # fmt: skip
def test_slices_that_there_are_not(runs: Path, asked: dict, says: str) -> None:
    good = {"name": "first", "case": "PanTS_00000001", "plane": "axial", "index": 0, "window": "bone"}
    with pytest.raises(UserError, match=says):
        slice_png(runs, **good | asked)


def test_curves_are_read_when_they_have_changed(tmp_path: Path) -> None:
    """Not before, and of few runs at a time."""
    tracker = write_run(tmp_path / "a")
    first = folders.curves_of(tmp_path / "a")
    assert folders.curves_of(tmp_path / "a") is first and first.groups()["loader/"] == ["loader/wait_fraction"]
    tracker.log(50, {"train/loss": 1.0})
    assert folders.curves_of(tmp_path / "a").rows[-1]["step"] == 50
    for number in range(folders.MOST_KEPT + 3):
        write_run(tmp_path / str(number))
        folders.curves_of(tmp_path / str(number))
    assert len(folders.KEPT) <= folders.MOST_KEPT


def test_curves_by_samples(tmp_path: Path) -> None:
    """A step is as many samples as the batch of the run's settings."""
    write_run(tmp_path / "a")
    (tmp_path / "a" / "config.yaml").write_text("train: {batch: 6}\n")
    assert folders.curves_of(tmp_path / "a").series("train/loss", "samples")[0] == [60, 120, 180, 240]
