"""Everything that happens to jobs, to one sweep at once, on a real SLURM; then nothing is missing.

    python -m tests.slurm.chaos            the full form (`make chaos`), some minutes
    python -m tests.slurm.chaos --short    what `make test` runs

The launcher is killed in the middle of its submission; cells are preempted, told to stop, lose
their node, are cancelled, run out of memory, and one is wrong from the start. The same command is
given until nothing is left to submit, then once with sweep.retry=cancelled. Every cell but the
broken two must then be done exactly once and equal to a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from launchers import status as cells
from tests.slurm.cluster import private_slurm, what_is_missing
from tests.test_resume import exact_rows, journal_text
from zolab import ledger
from zolab.compose import read_cell
from zolab.run import run_dir

PARTITION = "preempt"
#: One value that no training survives.
BROKEN_RATE = "1e30"


@dataclass(frozen=True)
class Size:
    """How many cells, and how often each thing happens.

    A cell needs so many steps that it is still in the middle of them when all the others were hit:
    forty take half a second.
    """

    cells: int
    steps: int
    parallel: int
    preemptions: int
    signals: int
    node_deaths: int
    cancels: int


FULL = Size(24, 200, 8, preemptions=6, signals=3, node_deaths=2, cancels=2)
SHORT = Size(6, 400, 6, preemptions=1, signals=1, node_deaths=1, cancels=1)


@dataclass
class Chaos:
    """One sweep and what is done to it.

    Attributes:
        told: what happened, for the reader.
        hit: cells that something was done to; nothing is done to a cell twice.
    """

    size: Size
    root: Path
    told: list[str] = field(default_factory=list)
    hit: set[str] = field(default_factory=set)
    begin: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        line = f"{time.monotonic() - self.begin:6.1f} s  {text}"
        self.told.append(line)
        print(line, flush=True)

    # -- commands ------------------------------------------------------------------------------

    def command(self, root: str, *more: str) -> list[str]:
        """The sweep: all good cells, the one that runs out of memory, the one that is wrong."""
        seeds = ",".join(map(str, range(self.size.cells - 1)))
        grid = f"grid=[{{seed:[{seeds}]}},{{seed:0,optimizer.lr:{BROKEN_RATE}}}]"
        small = (
            "task.num_train=40", "task.num_dev=16", "task.num_test=16", "train.batch_size=8",
            f"train.steps={self.size.steps}", f"train.eval_every={self.size.steps // 4}",
            "train.log_every=5", "train.max_nonfinite=3", "tracking=local", "model.device=cpu",
        )  # fmt: skip
        slurm = (
            "launcher=slurm", f"launcher.partition={PARTITION}", "launcher.cpus=1",
            "launcher.gpus=0", f"launcher.array_parallelism={self.size.parallel}",
            "launcher.time_minutes=30",
        )  # fmt: skip
        run_root = f"run_root={self.root / root}"
        return [sys.executable, "-m", "zolab", "-m", grid, *small, *slurm, run_root, *more]

    def launch(self, *more: str) -> str:
        done = subprocess.run(self.command("runs", *more), capture_output=True, text=True)
        return done.stdout + done.stderr

    # -- what is done to cells -----------------------------------------------------------------

    def victim(self) -> Path:
        """A cell in the middle of its steps; if there is one, one that nothing was done to."""
        begin = time.monotonic()
        while (waited := time.monotonic() - begin) < 300:
            folders = cells.folders_in(self.root / "runs")
            random.shuffle(folders)
            for folder in folders:
                journals = [p for p in folder.glob("attempts/*/journal.jsonl")]
                steps = sum(len(p.read_bytes().splitlines()) for p in journals)
                middle = 2 <= steps <= 0.7 * self.size.steps
                fresh = folder.name not in self.hit or waited > 15
                fits = fresh and middle and self.is_good(folder)
                # SLURM alters no job that it is just putting back, whatever the cell's claim says
                if fits and ledger.state_of(folder) == "running" and self.node(folder):
                    self.hit.add(folder.name)
                    return folder
            time.sleep(0.05)
        states = {folder.name: ledger.state_of(folder) for folder in folders}
        raise AssertionError(f"no cell is under way: {states}, hit: {sorted(self.hit)}")

    @staticmethod
    def is_good(folder: Path) -> bool:
        return read_cell(folder)["optimizer"]["lr"] != float(BROKEN_RATE)

    def job(self, folder: Path) -> str:
        return str(ledger.read_status(folder)["job_id"])

    def node(self, folder: Path) -> str:
        """Where the job of a cell runs; empty if it does not."""
        return _output("squeue", "-h", "-t", "RUNNING", "-o", "%N", "-j", self.job(folder)).strip()

    def hit_with(self, *command: str) -> Path:
        """Do it to the job of a victim; to another one if SLURM is busy with that job."""
        while True:
            folder = self.victim()
            with contextlib.suppress(subprocess.TimeoutExpired):  # scancel tries for minutes
                line = [*command, self.job(folder)]
                if not subprocess.run(line, capture_output=True, timeout=5).returncode:
                    return folder
            self.hit.discard(folder.name)

    def preempt(self) -> None:
        folder = self.victim()
        while not (node := self.node(folder)):
            folder = self.victim()
        wrap = ["-p", "main", "-w", node, "--exclusive", "-t1", "-o/dev/null", "--wrap", "sleep 1"]
        subprocess.run(["sbatch", *wrap], capture_output=True, check=True)
        self.say(f"preempted by a job of higher priority on {node}: {folder.name}")

    def tell(self) -> None:
        self.say(f"SIGUSR2: {self.hit_with('scancel', '--signal=USR2').name}")

    def cancel(self) -> None:
        self.say(f"scancel: {self.hit_with('scancel').name}")

    def starve(self) -> None:
        """SIGKILL from nowhere, as the kernel does it when memory runs out."""
        while True:
            folder = self.victim()
            holder = ledger.find_holder(folder)  # gone if the cell just came to its end
            with contextlib.suppress(ProcessLookupError, AttributeError):
                os.kill(holder.pid, signal.SIGKILL)
                break
            self.hit.discard(folder.name)
        self.say(f"killed for memory: {folder.name}")
        # Until SLURM has it on record: if the node died first, the job would go back to the queue.
        _wait(lambda: not self.node(folder), 60)

    def kill_node(self) -> None:
        """As in a power failure: the daemon, its helpers and the cells of a node die at once."""
        folder = self.victim()
        while not (node := self.node(folder)):
            folder = self.victim()
        home = Path(os.environ["ZOLAB_SLURM_HOME"])
        daemon = int((home / "run" / f"slurmd-{node}.pid").read_text())
        pids = [daemon, *_processes_of(node)]
        # Stopped first, so that nobody sees another one die. Children die before their parents: the
        # kernel wakes a stopped process whose parent dies, and an srun that wakes asks the
        # controller to kill its step. That request reaches the node a minute later, when it is back
        # and the cell runs there again.
        for number, order in ((signal.SIGSTOP, pids), (signal.SIGKILL, pids[::-1])):
            for pid in order:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        self.say(f"node {node} died with {len(pids)} processes: {folder.name} and its neighbours")
        if self.size is SHORT:  # else the controller finds out by itself, after SlurmdTimeout
            down = ["scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=chaos"]
            subprocess.run(down, check=True)
            time.sleep(1.0)
        else:
            _wait(lambda: "down" in _output("sinfo", "-h", "-n", node, "-o", "%t"), 300)
        start = ["slurmd", "-f", os.environ["SLURM_CONF"], "-N", node]
        environment = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
        subprocess.run(start, env=environment, check=True, capture_output=True)

    # -- the whole story -----------------------------------------------------------------------

    def run(self) -> None:
        self.kill_launcher()
        self.say("the same command: " + _plan(self.launch()))
        for event in self.events():
            event()
        rounds = 0
        while True:
            self.drain()
            said = self.launch()
            rounds += 1
            self.say("the same command: " + _plan(said))
            if " 0 to run" in _plan(said):
                break
            assert rounds < 10, "the sweep does not come to an end"
        errors = said.partition("cells have no result:")[2]
        self.say("with sweep.retry=cancelled: " + _plan(self.launch("sweep.retry=cancelled")))
        self.drain()
        self.say("in the end: " + cells.summary(self.rows()))
        self.judge(errors)

    def kill_launcher(self) -> None:
        """SIGKILL between the record of a submission and SLURM's answer to it."""
        jobs = self.root / "runs" / ".jobs"
        launcher = subprocess.Popen(self.command("runs"), stdout=subprocess.DEVNULL)
        while launcher.poll() is None and not list(jobs.glob("*.json")):
            time.sleep(0.002)
        launcher.kill()
        launcher.wait()
        arrays = [ledger.read_json(p).get("array") for p in jobs.glob("*.json")]
        self.say(f"launcher killed by SIGKILL; arrays on record: {arrays}")

    def events(self) -> list[Callable[[], None]]:
        size = self.size
        first = [self.starve, *[self.cancel] * size.cancels, *[self.tell] * size.signals]
        later = [*[self.preempt] * size.preemptions, *[self.kill_node] * size.node_deaths]
        events = [*first, *later]
        random.Random(0).shuffle(events)
        return events

    def rows(self) -> list[cells.Row]:
        return cells.rows_of(cells.entries_of(cells.folders_in(self.root / "runs")))

    def drain(self) -> None:
        """Until no job is left."""
        _wait(lambda: not _output("squeue", "-h", "-n", self.names()).strip(), 1200)

    def names(self) -> str:
        records = (self.root / "runs" / ".jobs").glob("*.json")
        return ",".join(f"zolab-{path.stem}" for path in records)

    def undisturbed(self, folder: Path) -> None:
        """The same cell in one go."""
        twin = self.root / "whole" / folder.name
        twin.mkdir(parents=True)
        (twin / "config.yaml").write_text((folder / "config.yaml").read_text())
        run_dir(twin)

    def judge(self, errors: str) -> None:
        """Compare with runs that nobody disturbed."""
        folders = cells.folders_in(self.root / "runs")
        states = {folder.name: ledger.state_of(folder) for folder in folders}
        failed = [folder for folder in folders if states[folder.name] == "failed"]
        assert len(folders) == self.size.cells
        assert len(failed) == 2, states
        assert all(name in errors for name in (f.name for f in failed)), errors
        told = " ".join(str(ledger.read_status(f)["error"]) for f in failed)
        assert "max_nonfinite" in told, told
        assert "SIGKILL not sent by SLURM" in told, told
        assert "last seen with" in told, told
        good = [folder for folder in folders if folder not in failed]
        assert all(states[folder.name] == "done" for folder in good), states
        attempts = 0
        with multiprocessing.get_context("fork").Pool(2) as pool:
            pool.map(self.undisturbed, good)
        for folder in good:
            result = ledger.read_json(folder / "result.json")
            found = [p for p in folder.glob("attempts/*") if p.name.isdigit()]
            assert result["num_attempts"] == len(found), "run again after it was done"
            attempts += len(found)
            twin = self.root / "whole" / folder.name
            expected = ledger.read_json(twin / "result.json")
            assert result["weights_hash"] == expected["weights_hash"], folder
            assert journal_text(folder) == journal_text(twin), folder
            assert exact_rows(folder) == exact_rows(twin), folder
            files = [p for p in folder.rglob("*") if p.is_file()]
            assert len(files) <= 6 + 2 * len(found), files
        self.say(
            f"{len(good)} cells done exactly once in {attempts} attempts, 2 failed and listed; "
            "hashes, journals and metrics equal undisturbed runs"
        )


def _processes_of(node: str) -> list[int]:
    """SLURM's helpers on a virtual node, then everything that they started there, in that order."""
    helpers, started = set(), []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if f"SLURMD_NODENAME={node}".encode() not in (process / "environ").read_bytes().split(
                b"\0"
            ):
                continue
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            started.append((int(fields[19]), int(process.name)))  # when it began, so parents first
            parent = int(fields[1])
            if b"slurmstepd" in (Path("/proc") / str(parent) / "cmdline").read_bytes():
                helpers.add(parent)
    return [*helpers, *(pid for _, pid in sorted(started))]


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.3)


def _plan(said: str) -> str:
    lines = [line for line in said.splitlines() if " to run" in line]
    return lines[0] if lines else said


def chaos(size: Size, root: Path) -> list[str]:
    """Run it on the cluster of this environment; what happened. AssertionError if it was lost."""
    story = Chaos(size, root)
    story.run()
    return story.told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--keep", metavar="DIR", help="leave runs and SLURM's logs in this folder")
    asked = parser.parse_args()
    size = SHORT if asked.short else FULL
    if missing := what_is_missing():
        print(f"a private SLURM needs {', '.join(missing)}", file=sys.stderr)
        return 1
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the cluster is ended all the same
    with private_slurm() as environment, tempfile.TemporaryDirectory() as folder:
        os.environ.update(environment)
        try:
            chaos(size, Path(folder))
        finally:
            if asked.keep:
                logs = Path(environment["ZOLAB_SLURM_HOME"]) / "log"
                shutil.copytree(folder, asked.keep, dirs_exist_ok=True)
                shutil.copytree(logs, Path(asked.keep) / "slurm", dirs_exist_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
