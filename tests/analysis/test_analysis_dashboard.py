"""The dashboard in headless Chromium, and its parts without a browser."""

from __future__ import annotations

import json
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import analysis_synth as synth
import pytest

pytest.importorskip("dash")

from analysis.dashboard import drawing, views
from analysis.dashboard.app import make_app
from analysis.dashboard.cli import dashboard
from analysis.dashboard.live import Live
from zolab.cli import main
from zolab.errors import UserError

NASTY = "<img src=x onerror=alert(1)><b>bold</b><script>alert(2)</script>"
NAN = float("nan")


def _fill(root: Path) -> Path:
    """Done, running-like, failed, diverged, hostile and unreadable runs."""
    rand = synth.masked("random", 0.5)
    rising = synth.rows([0.6, 0.55, 0.5, 0.4, 0.3], test=0.3)
    for row in rising[1:]:
        row |= {"dev/loss": 5.0, "zo/moved_share": 0.5}
    plans: dict[str, Any] = {
        "aa": (synth.config(0), synth.rows([0.5, 0.6, 0.7, 0.75, 0.8], test=0.7), {}),
        "bb": (synth.config(1), synth.rows([0.5, 0.6, 0.8, 0.9, 0.8], test=0.9), {}),
        "cc": (synth.config(0, **rand), synth.rows([0.5, 0.8, 0.8, 0.8, 0.6], test=0.8), {}),
        "dd": (synth.config(1, **rand), synth.rows([0.5, 0.6]), {"state": "failed",
               "error": NASTY}),
        "ee": (synth.config(0, **{"optimizer.lr": 1.0}), rising, {}),
        "ff": (synth.config(0, **{"task.name": NASTY, "optimizer.name": NASTY}), [], {}),
    }  # fmt: skip
    for run_id, (cfg, lines, status) in plans.items():
        done = {"result": {"schema": 1}} if lines and "test/loss" in lines[-1] else {}
        synth.write_local(root, run_id, cfg, lines, status=status, **done)
    attempt = root / "dd" / "attempts" / "1"
    attempt.mkdir(parents=True)
    (attempt / "error.txt").write_text(f"Traceback\n{NASTY}")
    broken = root / "gg"
    broken.mkdir()
    (broken / "config.yaml").write_text("a: [")
    return root


# --- without a browser ---------------------------------------------------------------------------


def test_a_snapshot_reads_only_what_changed(tmp_path: Path) -> None:
    live = Live(_fill(tmp_path), every=0.0)
    first = live.snapshot()
    states = {name: cell.state for name, cell in first.cells.items()}
    assert states == {"aa": "done", "bb": "done", "cc": "done", "dd": "failed", "ee": "done",
                      "ff": "planned", "gg": "unreadable"}  # fmt: skip
    assert first.cells["ee"].diverged
    assert first.cells["dd"].error == NASTY
    assert (first.cells["aa"].score, first.cells["bb"].best) == (0.8, 0.9)
    assert live.snapshot() is first
    with (tmp_path / "ff" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(synth.rows([0.4])[0]) + "\n")
    second = live.snapshot()
    assert second.version == first.version + 1
    assert second.cells["ff"].score == 0.4
    assert second.cells["aa"] is first.cells["aa"]


def test_settings_make_rows_of_their_own(tmp_path: Path) -> None:
    lines = synth.rows([0.5, 0.6])
    for number, eps in enumerate((1e-3, 1e-2)):
        synth.write_local(tmp_path, f"{number}", synth.config(0, **{"optimizer.eps": eps}), lines)
    cells = list(Live(tmp_path).snapshot().cells.values())
    assert [cell.method for cell in cells] == ["mezo, eps 0.001", "mezo, eps 0.01"]
    squares = drawing.grid(cells)["data"][0]
    assert squares["y"] == [0, 1]
    assert squares["x"] == [0, 0]


def test_filters_and_words(tmp_path: Path) -> None:
    snapshot = Live(_fill(tmp_path)).snapshot()

    def ids(words: str = "", **wanted: list[str]) -> list[str]:
        return [cell.run_id for cell in views.select(snapshot, wanted, words)]

    assert ids(state=["failed"]) == ["dd"]
    assert ids(method=["mezo + random 0.5"], state=[]) == ["cc", "dd"]
    assert ids("diverged") == ["ee"]
    assert ids("MEZO done") == ["aa", "bb", "cc", "ee"]
    assert ids("nothing such") == []


def test_curves_by_hand(tmp_path: Path) -> None:
    cells = list(Live(_fill(tmp_path)).snapshot().cells.values())
    figure, note = drawing.curves(cells[:2], "forwards_total", "dev/accuracy")
    band, line = figure["data"]
    assert line["x"] == [0, 20, 40, 60, 80]
    assert line["y"] == pytest.approx([50, 60, 75, 82.5, 80])
    assert band["y"][2] == pytest.approx(75 + 5 * 2**0.5)
    assert note == ""


def test_empty_and_growing_folder(tmp_path: Path) -> None:
    live = Live(tmp_path, every=0.0)
    assert live.snapshot().cells == {}
    assert make_app(live).layout() is not None
    _fill(tmp_path)
    assert len(live.snapshot().cells) == 7


def test_who_may_look(tmp_path: Path) -> None:
    live = Live(_fill(tmp_path))
    local = make_app(live).server.test_client()
    assert local.get("/", base_url="http://127.0.0.1:8050").status_code == 200
    assert local.get("/", base_url="http://evil.example").status_code == 403
    guarded = make_app(live, token="secret").server.test_client()
    assert guarded.get("/").status_code == 403
    assert guarded.get("/?token=wrong").status_code == 403
    answer = guarded.get("/?token=secret")
    assert answer.status_code == 200
    assert "HttpOnly" in answer.headers["Set-Cookie"]
    assert guarded.get("/_dash-layout").status_code == 200  # by the cookie


def test_bad_words(tmp_path: Path) -> None:
    for words, text in (
        ([str(tmp_path / "no")], "no such folder"),
        ([str(tmp_path), "--port", "99999"], "--port=99999"),
        ([str(tmp_path), "--every", "0"], "--every=0"),
        ([str(tmp_path), "--prot", "1"], "unrecognized arguments"),
    ):
        with pytest.raises(UserError, match=text):
            dashboard(words)


def test_export_is_one_static_page(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runs = _fill(tmp_path / "runs")
    out = tmp_path / "page.html"
    assert main(["dashboard", str(runs), "--export", str(out)]) == 0
    text = out.read_text()
    body = text.split("<script>\n/**")[0]
    assert 'data-figures="grid"' in body
    assert "<img" not in body
    assert "<script>alert" not in text
    assert "run gg" in body
    first = out.read_bytes()
    assert main(["dashboard", str(runs), "--export", str(out)]) == 0
    assert out.read_bytes() == first


# --- in a browser --------------------------------------------------------------------------------

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium here")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--window-size=1280,1600"):  # fmt: skip
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """Serve a folder through the verb itself; gives the address."""
    servers: list[Any] = []
    threads: list[threading.Thread] = []

    def start(root: Path) -> str:
        there, address = threading.Event(), []

        def ready(url: str, server: Any) -> None:
            address.append(url)
            servers.append(server)
            there.set()

        words = [str(root), "--port", "0", "--every", "0.3"]
        threads.append(threading.Thread(target=dashboard, args=(words, ready), daemon=True))
        threads[-1].start()
        assert there.wait(240)
        return address[0]

    yield start
    for server in servers:
        server.shutdown()
    for thread in threads:
        thread.join(10)


def _until(browser: Any, script: str, seconds: float = 60) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds, 0.1).until(
        lambda driver: driver.execute_script(f"return {script}")
    )


def _text(selector: str) -> str:
    return f"(document.querySelector('{selector}')?.innerText || '')"


def _quiet(browser: Any) -> None:
    entries = [e for e in browser.get_log("browser") if e["level"] in ("SEVERE", "WARNING")]
    assert entries == []
    assert not browser.execute_script("return document.querySelector('#page b, #list b, img')")


@needs_browser
def test_a_session_in_a_browser(browser: Any, serve: Callable[[Path], str], tmp_path: Path) -> None:
    """Filter, hover, open a run, compare, watch a sweep advance; no word becomes HTML."""
    root = _fill(tmp_path)
    url = serve(root)
    browser.get(url)
    _until(browser, "document.querySelectorAll('#grid .point, #grid .points path').length >= 7")
    assert "7 runs" in browser.execute_script(f"return {_text('#counts')}")
    assert "1 diverged" in browser.execute_script(f"return {_text('#counts')}")
    assert NASTY in browser.execute_script(f"return {_text('#list')}")

    # Hover: what a square says is text, tags and all.
    browser.execute_script(
        "const g = document.querySelector('#grid .js-plotly-plot') || "
        "document.querySelector('#grid.js-plotly-plot');"
        "const all = g.data.findIndex(d => (d.customdata || []).some(c => c[0] === 'dd'));"
        "const at = g.data[all].customdata.findIndex(c => c[0] === 'dd');"
        "Plotly.Fx.hover(g, [{curveNumber: all, pointNumber: at}]);"
    )
    hovered = "(document.querySelector('#grid .hoverlayer')?.textContent || '')"
    _until(browser, f"{hovered}.includes('onerror=alert(1)')")

    # Filter, by keyboard alone.
    from selenium.webdriver.common.keys import Keys

    box = browser.find_element("id", "words")
    box.send_keys("failed", Keys.ENTER)
    _until(browser, f"{_text('#counts')}.startsWith('1 runs')")
    assert len(browser.find_elements("css selector", "#list tbody tr")) == 1
    box.send_keys(*[Keys.BACKSPACE] * 6, Keys.ENTER)
    _until(browser, f"{_text('#counts')}.startsWith('7 runs')")

    # A running sweep advances without a reload.
    browser.execute_script("window.stayed = true")
    with (root / "ff" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(synth.rows([0.4321])[0]) + "\n")
    _until(browser, f"{_text('#list')}.includes('0.4321')")
    assert browser.execute_script("return window.stayed")

    # Open a run: its error, traceback and plots.
    browser.find_element("link text", "dd").send_keys(Keys.ENTER)
    _until(browser, f"{_text('#page')}.includes('Traceback')")
    _until(browser, "document.querySelectorAll('#page .main-svg').length > 3")
    assert browser.current_url.endswith("/run/dd")
    assert NASTY in browser.execute_script(f"return {_text('#page')}")

    # Compare two runs.
    browser.get(f"{url}compare?a=aa&b=cc")
    _until(browser, f"{_text('#differences')}.includes('sparsity.name')")
    assert "random" in browser.execute_script(f"return {_text('#differences')}")
    _until(browser, "document.querySelectorAll('#page .main-svg').length > 3")

    # Tables of what has finished.
    browser.get(url)
    _until(browser, "document.querySelector('#show-results')")
    browser.find_element("id", "show-results").click()
    _until(browser, f"{_text('#results')}.includes('Cost of reaching')")

    # A narrow screen scrolls down, not sideways.
    browser.set_window_size(500, 900)
    _until(browser, "document.documentElement.scrollWidth <= window.innerWidth + 1")
    _quiet(browser)


@pytest.mark.slow
@needs_browser
def test_a_thousand_runs(browser: Any, serve: Callable[[Path], str], tmp_path: Path) -> None:
    """The overview is in the first answer, so painting it takes no call of the server's more."""
    text = (synth.write_local(tmp_path, "0", synth.config(), synth.rows([0.5, 0.6]))
            / "config.yaml").read_text()  # fmt: skip
    rows = (tmp_path / "0" / "metrics.jsonl").read_bytes()
    for number in range(1, 1000):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        made = text.replace("seed: 0", f"seed: {number % 40}")
        (folder / "config.yaml").write_text(
            made.replace("lr: 0.0002", f"lr: {number // 40 + 1}e-5")
        )
        (folder / "metrics.jsonl").write_bytes(rows)
    url = serve(tmp_path)
    browser.set_window_size(1280, 1600)
    begin = time.process_time()
    urllib.request.urlopen(f"{url}_dash-layout").read()
    # What the server does for it, in CPU time: a small part of the two seconds.
    assert time.process_time() - begin < 1.0
    browser.get(url)
    _until(browser, "document.querySelectorAll('#grid .points path').length >= 1000")
    assert "1000 runs" in browser.execute_script(f"return {_text('#counts')}")
    painted = browser.execute_script(
        "return performance.getEntriesByName('first-contentful-paint')[0].startTime"
    )
    print(f"first paint after {painted:.0f} ms")
    assert len(browser.find_elements("css selector", "#list tbody tr")) == views.PAGE
    _quiet(browser)


@needs_browser
def test_outside_needs_the_token(tmp_path: Path) -> None:
    with pytest.raises(urllib.error.HTTPError, match="403"):
        _served_with_token(tmp_path)


def _served_with_token(root: Path) -> None:
    from werkzeug.serving import make_server

    app = make_app(Live(_fill(root)), token="secret")
    server = make_server("127.0.0.1", 0, app.server, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/").read()
    finally:
        server.shutdown()
        server.server_close()
