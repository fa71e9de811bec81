"""The tabs of input, stores and queue: what they read, and the real page in a real headless Chromium."""

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faults
import pytest
from small import make_store

from conversion.journal import JOURNAL, QUARANTINE, Writer
from pants_dist import queue
from pants_dist.dashboard.input import by_rank_figure, found_in, ranks_of, slowest_in_words
from pants_dist.dashboard.server import listen
from pants_dist.dashboard.stores import MOST_REFUSED, Queue, making_of, stores_of
from pants_dist.errors import UserError
from pants_dist.gauges import Measured, keep_ranks
from pants_dist.status import rows as status_rows
from pants_dist.tracking import Tracker

EVIL = "<img src=x onerror=document.title='taken'>"


def recorded_run(run: Path, kind: str, ranks: int = 4) -> None:
    """A run folder whose metrics are those of a recording, with a rank 2 that waits."""
    run.mkdir(parents=True)
    tracker = Tracker(run, 100, {}, writes=True)
    for line in (faults.RECORDINGS / f"{kind}.jsonl").read_text().splitlines():
        row = json.loads(line)
        tracker.log(row["step"], {name: value for name, value in row.items() if "/" in name})
    unknown = Measured(*[float("nan")] * len(Measured._fields))
    waits = [unknown._replace(waited_s=9.0 if rank == 2 else 1.0, own_s=2.0) for rank in range(ranks)]
    keep_ranks(run, 20, waits, [f"{EVIL}{rank // 2}" for rank in range(ranks)], elapsed_s=10.0, steps=20)


def test_ranks_are_read_back(tmp_path: Path) -> None:
    """What is not known is left out; the bar of the rank that waits most is the one in color; damage is a note."""
    assert ranks_of(tmp_path) == ([], "")
    recorded_run(tmp_path / "r", "slow_disk")
    ranks, note = ranks_of(tmp_path / "r")
    assert note == "" and ranks[2] == {"rank": 2, "node": f"{EVIL}1", "wait_fraction": 0.9, "own_s": 0.1}
    (bars,) = by_rank_figure(ranks, "wait_fraction", dark=False).data
    colors = list(bars.marker.color)
    assert list(bars.y) == [0.1, 0.1, 0.9, 0.1] and colors.count(colors[2]) == 1 and "<img" not in bars.text[0]
    for text in ("{", "[]", '{"ranks": [{}]}', '{"ranks": 3}'):
        (tmp_path / "r" / "ranks.json").write_text(text)
        assert ranks_of(tmp_path / "r")[1].startswith("ranks.json cannot be read")


def test_the_slowest_are_named_in_words() -> None:
    """Rank, node and number of both kinds."""
    last = {"loader/waits_most": 5, "loader/waits_most_node": "gpu7", "loader/wait_fraction": 0.25, "ranks/slowest": 3,
            "ranks/slowest_node": "gpu2", "ranks/own_s_max": 0.5}  # fmt: skip
    assert slowest_in_words(last) == "Waits most: rank 5 on gpu7 (25.0 %). Slowest: rank 3 on gpu2 (0.5 s a step)."
    assert slowest_in_words({}) == "Nothing is known of the ranks yet."
    assert "Too few" in str(found_in([])[0])


def test_status_says_what_slows_a_run_down(tmp_path: Path) -> None:
    """The costliest finding stands in the note of a run that goes on."""
    recorded_run(tmp_path / "r", "slow_disk")
    (row,) = status_rows(tmp_path)
    assert row.note.startswith("slow disk: ")


def test_a_store_that_is_made(tmp_path: Path) -> None:
    """Cases, total, rate and time left while it is made; whole once the manifest is there; the quarantine in both."""
    store = make_store(tmp_path / "store", cases=4)
    (manifest := store / "manifest.parquet").rename(tmp_path / "kept")
    Writer(store, JOURNAL).append({"cases": 100})
    Writer(store, QUARANTINE).append({"case": "bad", "reason": "no CT", "path": "/x", "root": "/"})
    making = making_of(store)
    assert (making.cases, making.total, making.per_hour, making.whole) == (4, 100, 24.0, False)
    assert making.refused == [{"case": "bad", "reason": "no CT", "path": "/x"}]
    assert making.in_words().startswith("being made: 4 of 100 cases, ") and "4.0 hours left" in making.in_words()
    assert "no case for a while" in making_of(store, now=time.time() + 3600).in_words()
    (tmp_path / "kept").rename(manifest)
    assert making_of(store).in_words().startswith("whole: 4 cases") and making_of(store).refused
    assert making_of(tmp_path / "gone").in_words() == "cannot be read (No such file or directory)"


def test_a_real_conversion_says_how_much_there_is(tmp_path: Path) -> None:
    """While it goes on the total stands in the journal, also of a case that is refused; afterwards the store is whole."""
    from conversion.run import convert
    from pants_dist.phantom import make_phantom

    make_phantom(tmp_path / "src", cases=3, centers=2, scale=0.1)
    seen = []

    def look(event: Any) -> None:
        if event.kind in ("converted", "refused"):
            seen.append(making_of(tmp_path / "store"))

    next((tmp_path / "src").rglob("ct.nii.gz")).write_bytes(b"no gzip")
    convert([tmp_path / "src"], tmp_path / "store", workers=1, on_event=look)
    assert [making.total for making in seen] == [3, 3, 3] and not any(making.whole for making in seen)
    after = making_of(tmp_path / "store")
    assert after.whole and after.cases == 2 and len(after.refused) == 1


def test_stores_come_from_runs_and_from_the_command(tmp_path: Path) -> None:
    """Each once; a run without readable settings, or one that lies elsewhere, names none."""
    for name, text in (("a", "data: {store: /s1}"), ("b", "data: {store: /s1}"), ("c", "{"), ("d", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)
    assert stores_of(tmp_path, ["a", "b", "c", "d", "e", "../x"], Path("/s2")) == [Path("/s2"), Path("/s1")]


def test_slurm_is_asked_rarely(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However often the page asks, squeue runs once; where there is none, or it fails, the note says so."""
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho x >>$0.asked\necho '7|train|RUNNING|None|1:00|2:00|4|gpu[1-4]'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    jobs = Queue()
    assert jobs.jobs() == jobs.jobs() == ([dict(zip(queue.COLUMNS, "7 train RUNNING None 1:00 2:00 4 gpu[1-4]".split(),
                                                    strict=True))], "")  # fmt: skip
    assert Path(f"{squeue}.asked").read_text() == "x\n"
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert Queue().jobs()[0] == [] and "not on this machine" in Queue().jobs()[1]


def test_a_page_before_the_first_run(tmp_path: Path) -> None:
    """With a store that is being made the page needs no run; without either it is refused."""
    with pytest.raises(UserError, match="no such folder"):
        listen(tmp_path / "runs", 0, "t" * 43)
    listen(tmp_path / "runs", 0, "t" * 43, make_store(tmp_path / "store", cases=2)).close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("input") / "runs"
    recorded_run(folder / "slow", "slow_disk")
    store = make_store(folder.parent / "store", cases=2)
    (store / "manifest.parquet").unlink()
    Writer(store, JOURNAL).append({"cases": 9})
    for number in range(MOST_REFUSED // 1000):
        Writer(store, QUARANTINE).append({"case": f"bad{number}", "reason": EVIL, "path": "/x", "root": "/"})
    (folder / "slow" / "config.yaml").write_text(f"data: {{store: {store}}}\ntrain: {{batch: 2}}\n")
    return folder


@pytest.fixture(scope="module")
def browser(runs: Path) -> Iterator[Any]:
    from selenium import webdriver

    if not shutil.which("chromedriver"):
        assert not os.environ.get("CI"), "CI needs chromium-driver"
        pytest.skip("no chromedriver here")
    server = listen(runs, 0, "t" * 43)
    threading.Thread(target=server.run, daemon=True).start()
    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1560,1700", "--disable-gpu"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    driver.get(f"http://127.0.0.1:{server.effective_port}/?token={'t' * 43}")
    yield driver
    driver.quit()
    server.close()


def until(browser: Any, script: str) -> object:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60).until(lambda driver: driver.execute_script("return " + script))


def open_tab(browser: Any, name: str) -> None:
    until(browser, "document.querySelectorAll('#tab [role=tab]').length > 3")
    next(tab for tab in browser.find_elements("css selector", "#tab [role=tab]") if tab.text == name).click()


def test_the_tabs_in_a_browser(browser: Any, runs: Path) -> None:
    """Findings with cures, the slowest named, bars and curves; a store's progress and quarantine; live; names are text."""
    open_tab(browser, "Input")
    until(browser, "document.getElementById('findings').innerText.includes('Cure: copy cases')")
    until(browser, "document.getElementById('slowest').innerText.includes('rank 0 on node0')")
    until(browser, "document.querySelector('#rank-wait_fraction .js-plotly-plot').data[0].y.length == 4")
    until(browser, "document.querySelectorAll('#input-waits .js-plotly-plot .scatterlayer .trace').length >= 2")
    until(browser, "!document.getElementById('box-gpu').offsetParent && document.getElementById('box-own').offsetParent")
    last = json.loads((runs / "slow" / "metrics.jsonl").read_text().splitlines()[-1])
    with open(runs / "slow" / "metrics.jsonl", "a") as file:
        file.write(json.dumps(last | {"step": 21, "ranks/slowest": 77}) + "\n")
    until(browser, "document.getElementById('slowest').innerText.includes('rank 77')")
    pictured(browser, "input")
    open_tab(browser, "Stores and queue")
    until(browser, "document.getElementById('makings').innerText.includes('being made: 2 of 9 cases')")
    until(browser, f"document.getElementById('refused-table').innerText.includes({json.dumps(EVIL)})")
    (runs.parent / "store" / "cases" / "more.ozx").write_bytes(b"x")
    until(browser, "document.getElementById('makings').innerText.includes('being made: 3 of 9 cases')")
    pictured(browser, "stores")
    assert browser.title == "pants-dist"
    assert complaints(browser) == []


def pictured(browser: Any, name: str) -> None:
    """A screenshot in the folder SCREENSHOTS, if somebody wants one."""
    if folder := os.environ.get("SCREENSHOTS"):
        time.sleep(2)
        browser.save_screenshot(f"{folder}/{name}.png")


def complaints(browser: Any) -> list[str]:
    """What stands on the console as an error, as a failed call-back would."""
    errors = [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    return [line for line in errors if "favicon" not in line]


def test_damage_while_the_page_is_open(browser: Any, runs: Path) -> None:
    """A half-written last line is waited for; a malformed table, and a run folder that is gone, are named; the page goes on."""
    open_tab(browser, "Overview")
    run = runs / "slow"
    with open(run / "metrics.jsonl", "a") as file:
        file.write('no JSON\n{"step": 22, "attem')
    (run / "evaluation" / "test").mkdir(parents=True)
    (run / "evaluation" / "test" / "cases.parquet").write_bytes(b"PAR1 not really")
    (run / "evaluation" / "report.html").write_text("changed")
    until(browser, "document.getElementById('notes').innerText.includes('metrics.jsonl: 1 lines cannot be read')")
    until(browser, "document.getElementById('notes').innerText.includes('cases.parquet')")
    shutil.rmtree(run)
    for name in ("Overview", "Runs", "Curves", "Cases", "Input", "Stores and queue"):
        open_tab(browser, name)
        time.sleep(0.5)
    until(browser, "document.getElementById('head').innerText.includes('slow') "
                   "&& document.getElementById('head').innerText.includes('summary.json is not there')")  # fmt: skip
    recorded_run(runs / "again", "healthy")
    until(browser, "document.querySelector('nav').innerText.includes('again')")
    for name in ("again", "slow"):
        browser.execute_script(f"document.querySelector('nav input[type=checkbox][value={name}]').click()")
    until(browser, "document.getElementById('head').innerText.includes('again')")
    assert complaints(browser) == []
