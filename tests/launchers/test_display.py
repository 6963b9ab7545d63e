from __future__ import annotations

import io
import re
import time

from launchers import display
from launchers.display import Board, clock, last_lines
from launchers.plan import Entry
from zolab import ledger


class Terminal(io.StringIO):
    """A screen that understands what `Board` writes: lines, cursor up, clear to the end."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        lines: list[str] = []
        for part in re.split(r"(\x1b\[\d*[AJ]|\n)", self.getvalue()):
            if part == "\n":
                continue
            if part.endswith("A") and part.startswith("\x1b"):
                del lines[len(lines) - int(part[2:-1]) :]
            elif part and part != "\x1b[J":
                lines.append(part)
        return lines


def entry(folder, name, state="planned", beat=None):
    run_dir = folder / name
    run_dir.mkdir()
    if beat:
        ledger.write_json(run_dir / "heartbeat", beat)
    return Entry(name, run_dir, {}, f"seed={name}", state=state)


BEAT = {"step": 200, "steps": 800, "loss": 0.5, "forwards_per_second": 40.0, "eta_seconds": 65.0}


def test_terminal_has_a_line_per_running_cell_and_totals(tmp_path, monkeypatch):
    monkeypatch.setattr(display, "_REDRAW_SECONDS", 0.0)
    monkeypatch.setenv("COLUMNS", "120")
    cells = [entry(tmp_path, "a", "running", BEAT), entry(tmp_path, "b", "running"),
             entry(tmp_path, "c")]  # fmt: skip
    out = Terminal()
    board = Board(cells, out, parallel=2)
    board.started(cells[0])
    board.tick()
    first = out.screen()
    assert first[0] == "a  [####            ]  200/800  loss 0.5000  40.0 fwd/s  eta 1:05  seed=a"
    assert first[1].startswith("b  [ ")
    assert first[2].startswith("0/3 done, 2 running, 1 waiting; 0:00 elapsed")
    cells[0].state = "done"
    ledger.write_json(cells[0].run_dir / "result.json", {"best": {"dev/accuracy": 0.8125}})
    board.ended(cells[0])
    board.tick()
    screen = out.screen()
    assert screen[0].startswith("[1/3 done] done      a  seed=a  0:00  dev/accuracy 0.812")
    assert len(screen) == 3
    board.close()
    assert len(out.screen()) == 1


def test_lines_fit_the_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr(display, "_REDRAW_SECONDS", 0.0)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "8")
    out = Terminal()
    Board([entry(tmp_path, str(i), "running", BEAT) for i in range(20)], out).tick()
    screen = out.screen()
    assert max(map(len, screen)) == 39
    assert len(screen) == 7
    assert screen[-2] == "... and 15 more"


def test_elsewhere_lines_come_at_a_modest_rate(tmp_path, monkeypatch):
    out = io.StringIO()
    board = Board([entry(tmp_path, "a", "running", BEAT)], out)
    for _ in range(100):
        board.tick()
    assert out.getvalue() == ""
    monkeypatch.setattr(display, "_PLAIN_SECONDS", 0.0)
    board.tick()
    assert out.getvalue().startswith("0/1 done, 1 running; 0:00 elapsed")
    assert "\x1b" not in out.getvalue()


def test_time_left_comes_from_finished_cells(tmp_path):
    cells = [entry(tmp_path, "a", "done"), entry(tmp_path, "b", "running", BEAT),
             entry(tmp_path, "c"), entry(tmp_path, "d")]  # fmt: skip
    board = Board(cells, io.StringIO(), parallel=2)
    board._seconds.append(100.0)
    # two waiting cells and three quarters of a running one, two at a time
    assert "about 2:18 left" in board.totals([BEAT])


def test_time_left_before_anything_finished(tmp_path):
    cells = [entry(tmp_path, "a", "running", BEAT), entry(tmp_path, "b")]
    board = Board(cells, io.StringIO())
    board._start = time.monotonic() - 25
    assert "about 2:55 left" in board.totals([BEAT])


def test_last_lines_prefer_the_log_and_fall_back_to_the_traceback(tmp_path):
    assert last_lines(tmp_path) == []
    (tmp_path / "attempts" / "1").mkdir(parents=True)
    (tmp_path / "attempts" / "1" / "error.txt").write_text("a\n\nb\n")
    assert last_lines(tmp_path) == ["a", "b"]
    log = tmp_path / "log"
    log.write_text("\n".join(str(i) for i in range(9000)))
    ledger.write_status(tmp_path, "failed", log=str(log))
    assert last_lines(tmp_path, 2) == ["8998", "8999"]


def test_clock():
    assert [clock(s) for s in (0, 61, 3725)] == ["0:00", "1:01", "1:02:05"]
