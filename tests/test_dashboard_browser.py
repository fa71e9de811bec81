"""The real page, driven in a real headless Chromium. The tests share one page and follow one another.

Everything is waited for, nothing is given a moment: a busy machine may take a minute for what else takes a second.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small import make_store
from watched import EVIL, TOKEN, keep_predictions, write_run

from pants_dist.dashboard.server import listen

PATIENCE_S = 150.0
TABLE, CASES, RUNS = ("#table", "#cases-table", "#runs-table")
WATCH = """
window.said = []; const say = console.error;
console.error = (...words) => { window.said.push(words.map(String).join(' ')); say.apply(console, words); };
window.polls = []; const before = window.fetch;
window.fetch = async (...given) => {
  const poll = String((given[1] || {}).body || '').includes('head.children');
  const entry = poll ? window.polls[window.polls.push({}) - 1] : null, answer = await before(...given);
  if (entry) answer.clone().text().then((text) => { entry.text = text; });
  return answer;
};
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: the newest has a store and kept predictions; one is a copy whose store is not here; one is evil."""
    folder = tmp_path_factory.mktemp("browser") / "runs"
    store = make_store(folder.parent / "store", cases=6)
    for name in (EVIL.replace("/", ""), "copied", "first"):
        write_run(folder / name, steps=30 if name == "copied" else 40)
        place = store if name == "first" else folder.parent / "elsewhere"
        (folder / name / "config.yaml").write_text(f"data: {{store: {place}}}\ntrain: {{batch: 2}}\n")
        line = {"attempt": 1, "time": time.time() - 90, "host": "x", "train/loss": 1.9, "loader/wait_fraction": 0.1}
        log = folder / name / "metrics.jsonl"
        log.write_text("".join(json.dumps(line | {"step": n}) + "\n" for n in range(1, 30)))
    keep_predictions(folder / "first", store)
    shutil.copytree(folder / "first/evaluation/val_seen/worst", folder / "copied/evaluation/val_seen/worst")
    attempt = {"step": 30, "attempt": 2, "time": time.time() + 60, "host": "x", "train/loss": 1.6}
    with open(folder / "first" / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(attempt) + "\n" + json.dumps(attempt | {"step": 40, "train/loss": 1.5}) + "\n")
    for age, name in enumerate(("first", "copied", EVIL.replace("/", ""))):
        for path in (folder / name).glob("*.json*"):
            os.utime(path, (time.time() - 10 * age,) * 2)
    return folder


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    server = listen(runs, 0, TOKEN)
    threading.Thread(target=server.run, daemon=True).start()
    yield f"http://127.0.0.1:{server.effective_port}"
    server.close()


@pytest.fixture(scope="module")
def browser(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    if not shutil.which("chromedriver"):
        assert not os.environ.get("CI"), "CI needs chromium-driver"
        pytest.skip("no chromedriver here")
    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1560,2200", "--disable-gpu"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    driver.command_executor.client_config.timeout = 2 * PATIENCE_S
    driver.set_page_load_timeout(PATIENCE_S)
    driver.set_script_timeout(PATIENCE_S)
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
    driver.downloads = tmp_path_factory.mktemp("downloads")
    driver.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(driver.downloads)})
    driver.get(f"{address}/?token={TOKEN}")
    yield driver
    driver.quit()


def until(browser: Any, script: str, again: Callable[[], object] | None = None) -> Any:
    """What a script returns once it is true; what it stumbles over until then counts for nothing. `again` is done before
    each look, for clicks that come too early for a busy page."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if again:
            again()
        found = browser.execute_script(f"try {{ return {script} }} catch (error) {{ return null }}")
        if found:
            return found
        time.sleep(0.3)
    raise AssertionError(f"not within {PATIENCE_S:.0f} s: {script}")


def rows(table: str) -> str:
    """Script: the rows of a table, in the order in which they are seen."""
    found = f"[...document.querySelectorAll('{table} .ag-center-cols-container .ag-row')]"
    return f"{found}.sort((a, b) => a.getAttribute('row-index') - b.getAttribute('row-index'))"


def cells(table: str, column: str) -> str:
    """Script: what a column of a table says, from top to bottom."""
    return f"{rows(table)}.map(row => row.querySelector('[col-id=\"{column}\"]').innerText)"


def click(browser: Any, script: str) -> None:
    """Click what a script finds, once it finds it."""
    until(browser, f"({script}) && (({script}).click(), true)")


def tab(browser: Any, name: str) -> None:
    click(browser, f"[...document.querySelectorAll('#tab [role=tab]')].find(one => one.innerText == '{name}')")
    until(browser, f"document.querySelector('#tab [role=tab][aria-selected=true]').innerText == '{name}'")


def put(browser: Any, key: str, value: object) -> None:
    """Set a control as a hand would."""
    until(browser, f"(window.dash_clientside.set_props({json.dumps(key)}, {json.dumps(value)}), true)")


def figure(key: str) -> str:
    """Script: a figure of the page."""
    return f"document.querySelector('#{key} .js-plotly-plot')"


def test_every_tab_loads(browser: Any, address: str) -> None:
    """Each tab draws what it has; the address has lost its token; names like tags stay text."""
    until(browser, "document.querySelectorAll('.js-plotly-plot .main-svg').length > 10")
    until(browser, f"{rows(TABLE)}.length == 4 && document.querySelector('{TABLE}').innerText.includes({json.dumps(EVIL)})")
    assert browser.current_url == address + "/"
    assert "40 / 100" in until(browser, "document.getElementById('head').innerText")
    until(browser, "document.querySelectorAll('.worst img').length == 6")
    until(browser, "document.querySelector('.worst img').naturalWidth > 99")
    tab(browser, "Runs")
    until(browser, f"{rows(RUNS)}.length == 3")
    tab(browser, "Curves")
    until(browser, "document.querySelectorAll('#group-curves .main-svg').length > 1")
    tab(browser, "Cases")
    until(browser, f"{rows(CASES)}.length > 5")
    others = until(browser, "[...document.querySelectorAll('#tab [role=tab]')].map(one => one.innerText)")
    for name in others:
        tab(browser, name)
    tab(browser, "Overview")
    assert browser.title == "pants-dist"


def test_a_line_shows_within_two_polls(browser: Any, runs: Path) -> None:
    """Of a writer in a process of its own: at the latest the second poll that begins after the line brings it."""
    tab(browser, "Overview")
    code = "import sys; from pathlib import Path; from pants_dist.tracking import Tracker\n"
    code += "Tracker(Path(sys.argv[1]), 100, {}, writes=True).log(50, {'train/loss': 1.0})"
    subprocess.run([sys.executable, "-c", code, str(runs / "first")], check=True)
    begun = browser.execute_script("return window.polls.length")
    until(browser, "window.polls.some(poll => (poll.text || '').includes('\"50\"'))")
    first = browser.execute_script("return window.polls.findIndex(poll => (poll.text || '').includes('\"50\"'))")
    assert first < begun + 2
    until(browser, "document.getElementById('head').innerText.includes('50 / 100')")
    until(browser, f"{figure('loss')}.data.at(-1).x.at(-1) == 50")


def test_runs_are_filtered_sorted_and_compared(browser: Any, runs: Path) -> None:
    """One choice of runs in the table and on the left; a run that appears is listed without a reload."""
    tab(browser, "Runs")
    until(browser, f"{rows(RUNS)}.length == 3 && document.querySelector('{RUNS}').innerText.includes('running')")
    header = f"document.querySelector('{RUNS} .ag-header-cell[col-id=step] .ag-header-cell-label')"
    click(browser, header)
    until(browser, f"{cells(RUNS, 'step')}.join() == '30,40,50'")
    put(browser, "runs-filter", {"value": "onerror"})
    until(browser, f"{rows(RUNS)}.length == 1")
    put(browser, "runs-filter", {"value": ""})
    until(browser, f"{rows(RUNS)}.length == 3")
    click(browser, f"document.querySelector('{RUNS} .ag-row[row-id=copied] [col-id=shown]')")
    until(browser, "document.querySelector('nav input[value=copied]').checked")
    assert browser.execute_script("return document.querySelector('nav input[value=first]').checked")
    until(browser, "document.getElementById('run-name').innerText == 'first'")
    write_run(runs / "appeared", steps=20)
    until(browser, f"{rows(RUNS)}.length == 4 && document.querySelector('nav input[value=appeared]')")
    shutil.rmtree(runs / "appeared")


def test_curves_are_laid_over_one_another(browser: Any) -> None:
    """Raw faint behind smoothed, requeues dashed, on three axes and a logarithmic one; groups with what they hold."""
    tab(browser, "Overview")
    put(browser, "runs", {"value": ["first", "copied"]})
    until(browser, f"{figure('loss')}.data.length == 4")  # two runs, raw and smoothed
    assert browser.execute_script(f"return {figure('loss')}.data.map(trace => trace.opacity < 0.5)") == [True, False] * 2
    for x, place in (("step", 30), ("samples", 60)):
        put(browser, "x", {"value": x})
        until(browser, f"{figure('loss')}.layout.xaxis.title.text == '{x}'")
        until(browser, f"{figure('loss')}.layout.shapes.some(line => line.line.dash == 'dash' && line.x0 == {place})")
    put(browser, "x", {"value": "time"})
    until(browser, f"{figure('loss')}.layout.xaxis.title.text == 'hours' && {figure('loss')}.layout.shapes.length")
    click(browser, "document.getElementById('log')")
    until(browser, f"{figure('loss')}.layout.yaxis.type == 'log'")
    put(browser, "smoothing", {"value": 0})
    until(browser, f"{figure('loss')}.data.length == 2")
    click(browser, "[...document.querySelectorAll('#groups button')].find(one => one.innerText.startsWith('loader/'))")
    until(browser, "document.getElementById('group-name').innerText == 'loader/'")
    until(browser, "document.querySelectorAll('#group-curves .card').length == 1")
    put(browser, "metric-filter", {"value": "loss$"})
    until(browser, "document.querySelectorAll('#groups button').length == 1")
    until(browser, "document.getElementById('group-curves').innerText.startsWith('train/loss')")
    put(browser, "metric-filter", {"value": ""})


def test_centers_are_sorted_by_any_metric(browser: Any) -> None:
    """Dots, bars and heat map keep one order, best first; the table sorts, filters and is saved as CSV."""
    tab(browser, "Overview")
    orders = f"{figure('centers')}.data.find(trace => trace.type == 'bar').customdata.join('|')"
    best_first = f"Center 0|Center 1|Center 2|{EVIL}"
    until(browser, f"{orders} == {json.dumps(best_first)}")
    until(browser, f"{figure('centers')}.data.find(trace => trace.type == 'heatmap').customdata[0].join('|') == {orders}")
    put(browser, "metric", {"value": "hd95_mm/pancreas"})
    until(browser, f"{figure('centers')}.layout.yaxis.title.text.startsWith('HD95 in mm, pancreas')")
    until(browser, f"{orders} == {json.dumps(best_first)}")  # the lowest is the best
    put(browser, "sort", {"value": "center"})
    until(browser, f"{orders} == {json.dumps('|'.join(sorted(best_first.split('|'))))}")
    put(browser, "sort", {"value": "metric"})
    until(browser, f"{cells(TABLE, 'center')}[0] == {json.dumps(EVIL)}")
    click(browser, f"document.querySelector('{TABLE} .ag-header-cell[col-id=center] .ag-header-cell-label')")
    until(browser, f"{cells(TABLE, 'center')}.join('|') == {json.dumps('|'.join(sorted(best_first.split('|'))))}")
    put(browser, "filter", {"value": "held-out"})
    until(browser, f"{cells(TABLE, 'set')}.join() == 'held-out,held-out'")
    put(browser, "filter", {"value": ""})
    until(browser, f"{rows(TABLE)}.length == 4")
    click(browser, "document.getElementById('csv')")
    saved = browser.downloads / "centers.csv"
    end = time.monotonic() + PATIENCE_S
    while not saved.is_file() and time.monotonic() < end:
        time.sleep(0.3)
    assert saved.read_text().count("\n") == 4 and "Center 2" in saved.read_text()


def test_a_dot_leads_to_its_cases(browser: Any) -> None:
    """A click of the mouse on a dot opens the cases of that center, and of no other."""
    from selenium.webdriver import ActionChains

    tab(browser, "Overview")
    dot = until(browser, "document.querySelector('#centers .scatterlayer .trace:last-of-type .points path')")
    until(
        browser, "document.querySelector('#tab [role=tab][aria-selected=true]').innerText == 'Cases'",
        lambda: browser.execute_script("return document.querySelector('#tab [role=tab][aria-selected=true]').innerText")
        == "Cases" or ActionChains(browser).move_to_element(dot).pause(0.5).click().perform(),
    )  # fmt: skip
    until(browser, f"{rows(CASES)}.length == 6 && new Set({cells(CASES, 'center')}).size == 1")
    assert browser.execute_script(f"return {cells(CASES, 'center')}[0]") in ("Center 2", EVIL)


def test_a_row_leads_to_its_cases_and_a_case_to_slices(browser: Any) -> None:
    """Three planes, the wheel, windows; a picture of a worst case leads there as well."""
    tab(browser, "Overview")
    click(browser, f"{rows(TABLE)}.find(row => row.innerText.includes('Center 1')).querySelector('.ag-cell')")
    until(browser, f"{rows(CASES)}.length == 6 && {cells(CASES, 'center')}.every(name => name == 'Center 1')")
    click(browser, f"{rows(CASES)}.find(row => row.innerText.includes('PanTS_00000002')).querySelector('.ag-cell')")
    until(browser, "document.getElementById('case-name').innerText == 'PanTS_00000002'")
    for plane in ("axial", "coronal", "sagittal"):
        until(browser, f"document.getElementById('slice-{plane}').naturalWidth > 300")
    source = str(browser.execute_script("return document.getElementById('slice-axial').src"))
    wheel = "new WheelEvent('wheel', {deltaY: -100, bubbles: true, cancelable: true})"
    browser.execute_script(f"document.getElementById('slice-axial').dispatchEvent({wheel})")
    index = int(source.partition("index=")[2].partition("&")[0])
    until(browser, f"document.getElementById('slice-axial').src.includes('index={index + 1}&')")
    until(browser, f"document.getElementById('place-axial').innerText.startsWith('{index + 2} /')")
    put(browser, "window", {"value": "bone"})
    until(browser, "document.getElementById('slice-coronal').src.includes('window=bone')")
    until(browser, "document.getElementById('slice-coronal').complete")
    tab(browser, "Overview")
    click(browser, "document.querySelector('.worst button')")
    until(browser, "document.querySelector('#tab [role=tab][aria-selected=true]').innerText == 'Cases'")
    until(browser, "document.getElementById('slice-axial').src.includes(document.getElementById('case-name').innerText)")


def test_a_copy_without_its_store_shows_the_worst_cases(browser: Any) -> None:
    """Of a run whose store is not on this machine: why there are no slices, and the picture that was drawn."""
    put(browser, "runs", {"value": ["copied"]})
    until(browser, "document.getElementById('run-name').innerText == 'copied'")
    put(browser, "cases-center", {"value": None})
    tab(browser, "Overview")
    click(browser, "document.querySelector('.worst button')")
    until(browser, "document.getElementById('drawn').innerText.includes('no slices here')")
    until(browser, "document.querySelector('#drawn img').naturalWidth > 99 && document.getElementById('planes').hidden")


def test_dark(browser: Any) -> None:
    """Ground, tables and figures change together, and back."""
    tab(browser, "Overview")
    color = "getComputedStyle(document.querySelector('{}')).{}"
    lightness = color + ".match(/[0-9.]+/g).slice(0, 3).map(Number).reduce((a, b) => a + b)"
    ground, table = lightness.format(".page", "backgroundColor"), lightness.format("#table .ag-cell", "color")
    until(browser, f"{ground} > 600 && {table} < 200")
    click(browser, "document.getElementById('dark')")
    until(browser, f"{ground} < 150 && {table} > 600")
    until(browser, f"{figure('loss')}.layout.font.color == '#939ca8'")
    click(browser, "document.getElementById('dark')")
    until(browser, f"{ground} > 600 && {figure('loss')}.layout.font.color == '#68707b'")


def test_no_error_and_no_request_off_loopback(browser: Any, address: str) -> None:
    """After all of the above: nothing severe on the console, and no address but the page's own was asked."""
    errors = [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert [line for line in errors if "favicon" not in line] == [], browser.execute_script("return window.said")
    assert browser.title == "pants-dist"
    events = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert len(asked) > 30 and [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
