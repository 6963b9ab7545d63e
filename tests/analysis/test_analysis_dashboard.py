"""The parts of the dashboard without a browser."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import analysis_synth as synth
import pytest

pytest.importorskip("dash")

from analysis.dashboard import drawing, views
from analysis.dashboard.app import make_app
from analysis.dashboard.board import as_script, board
from analysis.dashboard.cli import dashboard
from analysis.dashboard.live import Live
from zolab.cli import main
from zolab.errors import UserError

NAN = float("nan")


def test_a_snapshot_reads_only_what_changed(tmp_path: Path) -> None:
    live = Live(synth.write_zoo(tmp_path), every=0.0)
    first = live.snapshot()
    states = {name: cell.state for name, cell in first.cells.items()}
    assert states == {"aa": "done", "bb": "done", "cc": "done", "dd": "failed", "ee": "done",
                      "ff": "planned", "gg": "unreadable"}  # fmt: skip
    assert first.cells["ee"].diverged
    assert first.cells["dd"].error == synth.NASTY
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
    data = board(cells)
    assert data["rows"] == ["mezo, eps 0.001, lr 2e-4", "mezo, eps 0.01, lr 2e-4"]
    assert data["columns"] == [("tiny", "toy", "0")]
    assert [cell[:3] for cell in data["cells"]] == [[0, 0, "0"], [1, 0, "1"]]


def test_board_by_hand(tmp_path: Path) -> None:
    """Worst first in the list; shades from the worst to the best score; words are only data."""
    data = board(list(Live(synth.write_zoo(tmp_path)).snapshot().cells.values()), unread=3)
    assert data["counts"][:2] == [(7, "runs", ""), (3, "not read yet", "")]
    assert (1, "diverged", "diverged") in data["counts"]
    found = {cell[2]: cell for cell in data["cells"]}
    assert list(found) == ["ee", "dd", "gg", "ff", "aa", "bb", "cc"]
    assert data["columns"][found["bb"][1]] == ("tiny", "toy", "1")
    assert found["aa"][6:9] == ["80.0", "80.0", 1.0]
    assert found["ee"][6:11] == ["30.0", "60.0", 0.0, 1, 1]
    assert found["cc"][8] == pytest.approx(0.6)
    assert found["gg"][8] is None
    text = as_script(data)
    assert "<" not in text
    assert synth.NASTY in json.loads(text)["cells"][1][13]


def test_a_thousand_runs_are_little_to_send(tmp_path: Path) -> None:
    """What the first paint waits for: CPU time of the server and bytes for the browser."""
    (one,) = Live(synth.write_local(tmp_path, "a", synth.config(), synth.rows([0.5, 0.6])).parent
                  ).snapshot().cells.values()  # fmt: skip
    cells = [
        replace(one, run_id=f"{i:016x}", about=one.about | {"seed": i % 40, "lr": 1e-6 * (i // 40)})
        for i in range(1000)
    ]
    begin = time.process_time()
    text = as_script(board(cells))
    assert time.process_time() - begin < 0.5
    assert len(text) < 200_000
    assert len(json.loads(text)["cells"]) == 1000


def test_a_page_during_the_first_look_shows_what_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, seen = Live(synth.write_zoo(tmp_path)), []
    monkeypatch.setattr("analysis.dashboard.live._PARTLY", 0.0)

    def watch(number: int, total: int) -> None:
        if number in (3, total):
            other = threading.Thread(target=lambda: seen.append(live.snapshot()))
            other.start()
            other.join(10)

    whole = live.snapshot(watch)
    assert [len(s.cells) + s.unread for s in seen] == [7, 7]
    assert 0 < len(seen[0].cells) < len(seen[1].cells) < 7
    assert (len(whole.cells), whole.unread) == (7, 0)
    assert seen[0].version < seen[1].version < whole.version


def test_filters_and_words(tmp_path: Path) -> None:
    snapshot = Live(synth.write_zoo(tmp_path)).snapshot()

    def ids(words: str = "", **wanted: list[str]) -> list[str]:
        return [cell.run_id for cell in views.select(snapshot, wanted, words)]

    assert ids(state=["failed"]) == ["dd"]
    assert ids(method=["mezo + random 0.5"], state=[]) == ["cc", "dd"]
    assert ids("diverged") == ["ee"]
    assert ids("MEZO done") == ["aa", "bb", "cc", "ee"]
    assert ids("nothing such") == []


def test_curves_by_hand(tmp_path: Path) -> None:
    cells = list(Live(synth.write_zoo(tmp_path)).snapshot().cells.values())
    figure, note = drawing.curves(cells[:2], "forwards_total", "dev/accuracy")
    band, line = figure["data"]
    assert line["x"] == [0, 20, 40, 60, 80]
    assert line["y"] == pytest.approx([50, 60, 75, 82.5, 80])
    assert band["y"][2] == pytest.approx(75 + 5 * 2**0.5)
    assert note == ""
    titles = [figure["layout"][axis]["title"]["text"] for axis in ("xaxis", "yaxis")]
    assert titles == ["forward passes (a backprop step counts 3)", "dev accuracy (%)"]
    for _, panel in [*drawing.journal(cells[0].log), *drawing.overlay(*cells[:2])]:
        assert panel["layout"]["xaxis"]["title"]["text"] == "steps"
        assert panel["layout"]["yaxis"]["title"]["text"]


def test_empty_and_growing_folder(tmp_path: Path) -> None:
    live = Live(tmp_path, every=0.0)
    assert live.snapshot().cells == {}
    assert make_app(live).layout() is not None
    synth.write_zoo(tmp_path)
    assert len(live.snapshot().cells) == 7


def test_who_may_look(tmp_path: Path) -> None:
    live = Live(synth.write_zoo(tmp_path))
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
    runs = synth.write_zoo(tmp_path / "runs")
    out = tmp_path / "page.html"
    assert main(["dashboard", str(runs), "--export", str(out)]) == 0
    text = out.read_text()
    body = text.split("<script>\n/**")[0]
    assert 'id="board-data"' in body
    assert "<img" not in body
    assert "<script>alert" not in text
    assert "run gg" in body
    first = out.read_bytes()
    assert main(["dashboard", str(runs), "--export", str(out)]) == 0
    assert out.read_bytes() == first
