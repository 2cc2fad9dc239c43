"""Faults, really made: `tests/faults` tries each once, `benchmarks/faults.py` counts them for the docs.

Each takes a `Ground` (a folder, settings, the undisturbed result) and does its harm. It returns nothing if the run ends
as it should; an AssertionError says what did not hold.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from bdflow.runner import scratch_of
from bdflow.stores import Study
from tests.conftest import execution, snapshot

BDFLOW = Path(sys.executable).with_name("bdflow")
STAGES = ("ingest", "features", "regress", "reconstruct", "evaluate")
FIRST = {"ingest": "betas/subj01", "features": "targets/vdvae/subj01", "regress": "predictions/subj01/vdvae"}
FIRST |= {"reconstruct": "reconstructions/brain_diffuser/subj01/full", "evaluate": "metrics/brain_diffuser/subj01"}
UNTIL = ("--until", "evaluate")


@dataclass
class Ground:
    """Where a fault happens: an empty folder, `settings(root, **sections)`, and what an undisturbed run writes."""

    folder: Path
    settings: Callable[..., dict[str, Any]]
    expected: dict[str, bytes]
    chance: random.Random

    @property
    def study(self) -> Path:
        return self.folder / "study.zarr"

    def configure(self, **sections: Any) -> Path:
        file = self.folder / "config.yaml"
        file.write_text(yaml.safe_dump(self.settings(self.folder, **sections), sort_keys=False))
        return file

    def start(self, *more: str, **options: Any) -> psutil.Popen:
        log = (self.folder / "log.txt").open("a")
        command = [str(BDFLOW), "run", str(self.folder / "config.yaml"), *UNTIL, *more]
        return psutil.Popen(command, stdout=log, stderr=log, **options)

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    def run(self, *more: str, code: int = 0, **options: Any) -> None:
        assert self.start(*more, **options).wait(900) == code, self.log()

    def until(self, stage: str, process: psutil.Popen | None = None, seconds: float = 600) -> bool:
        """Wait until a stage has begun to fill its last kind of store; False if the run was quicker."""
        study, limit = Study(self.study), time.monotonic() + seconds
        while not (study.exists and study.declared(FIRST[stage])):
            if process is not None and process.poll() is not None:
                return False
            assert time.monotonic() < limit, self.log()
            time.sleep(0.01)
        return True

    def same(self) -> None:
        found = snapshot(self.study)
        assert found.keys() == self.expected.keys()
        assert [name for name in found if found[name] != self.expected[name]] == []


def kill_tree(process: psutil.Popen) -> None:
    """SIGKILL to a process and all it has started."""
    family = [process, *process.children(recursive=True)] if process.is_running() else []
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait(30)
    psutil.wait_procs(family, timeout=30)


# --- killed driver, workers, nodes, scheduler -----------------------------------------------------------------


def killed_driver(ground: Ground, stage: str) -> None:
    """kill -9 to the driver and its workers as soon as the stage writes; the same command ends in the same bytes."""
    ground.configure(execution=execution("dask", 2))
    process = ground.start()
    if ground.until(stage, process):
        time.sleep(ground.chance.uniform(0, 0.5))
    kill_tree(process)
    ground.run()
    ground.same()
    name = scratch_of(ground.study).name
    assert not list(Path("/dev/shm").glob(f"*{name}*")), "semaphores of the dead run are swept by the next"
    assert not list(ground.folder.glob("*.scratch"))


def killed_worker(ground: Ground, stage: str) -> None:
    """kill -9 to one of the two Dask workers; the run goes on."""
    ground.configure(execution=execution("serial") | {stage: {"executor": "dask", "workers": 2}})
    process = ground.start()
    assert ground.until(stage, process)
    limit = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < limit:
        workers = [child for child in process.children(recursive=True) if "spawn_main" in " ".join(child.cmdline())]
        if workers:
            workers[-1].kill()
            break
        time.sleep(0.02)
    assert process.wait(900) == 0, ground.log()
    ground.same()


@contextlib.contextmanager
def dask_nodes(ground: Ground) -> Iterator[tuple[str, psutil.Popen, list[psutil.Popen]]]:
    """A scheduler and three nannies of one worker each, as on machines of their own."""
    log = (ground.folder / "dask.txt").open("a")
    file = ground.folder / "scheduler.json"
    python = [sys.executable, "-m"]
    common = ["--host", "127.0.0.1", "--no-dashboard"]
    command = [*python, "distributed.cli.dask_scheduler", *common, "--port", "0", "--scheduler-file", str(file)]
    scheduler = psutil.Popen(command, stdout=log, stderr=log, cwd=ground.folder)
    limit = time.monotonic() + 60
    while not file.is_file() and time.monotonic() < limit:
        time.sleep(0.1)
    address = yaml.safe_load(file.read_text())["address"]
    command = [*python, "distributed.cli.dask_worker", address, "--nthreads", "1", *common]
    nodes = [psutil.Popen(command, stdout=log, stderr=log, cwd=ground.folder) for _ in range(3)]
    try:
        yield address, scheduler, nodes
    finally:
        for process in [*nodes, scheduler]:
            kill_tree(process)


def lost_dask_node(ground: Ground, stage: str) -> None:
    """A nanny and its worker at once, of three; the run goes on with two."""
    with dask_nodes(ground) as (address, _, nodes):
        where = {"kind": "address", "address": {"dask": address}}
        ground.configure(execution=execution("serial") | {stage: {"executor": "dask", "workers": 3}}, cluster=where)
        process = ground.start()
        assert ground.until(stage, process)
        kill_tree(nodes[0])
        assert process.wait(900) == 0, ground.log()
        assert all(node.is_running() for node in nodes[1:])
    ground.same()


def lost_scheduler(ground: Ground, stage: str) -> None:
    """Dask's scheduler at an address; the run says so and stops, and goes on elsewhere to the same bytes."""
    with dask_nodes(ground) as (address, scheduler, _):
        where = {"kind": "address", "address": {"dask": address}, "start_timeout": 15}
        ground.configure(execution=execution("serial") | {stage: {"executor": "dask", "workers": 3}}, cluster=where)
        process = ground.start()
        assert ground.until(stage, process)
        scheduler.kill()
        code = process.wait(900)
        assert code in (0, 1), ground.log()
        if code:
            assert "scheduler" in ground.log()
    ground.run("--set", "cluster.kind=local")
    ground.same()


RAY = """
import sys, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster

folder = Path(sys.argv[1])
small = dict(num_cpus=1, object_store_memory=100 * 2**20)
nodes = Cluster(initialize_head=True, head_node_args=dict(small, include_dashboard=False))
others = [nodes.add_node(**small) for _ in range(2)]
(folder / "new").write_text(nodes.address)
(folder / "new").rename(folder / "address")
while not (folder / "stop").exists():
    if (folder / "lose").exists() and not (folder / "lost").exists():
        nodes.remove_node(others.pop(), allow_graceful=False)
        (folder / "lost").touch()
    time.sleep(0.02)
nodes.shutdown()
"""


@contextlib.contextmanager
def ray_nodes(folder: Path) -> Iterator[str]:
    """A head and two more raylets of one CPU each; touching `lose` in the folder kills one, then `lost` is there."""
    log = (folder / "ray.txt").open("a")
    variables = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    owner = psutil.Popen([sys.executable, "-c", RAY, str(folder)], stdout=log, stderr=log, env=variables)
    try:
        limit = time.monotonic() + 90
        while not (folder / "address").is_file():
            assert owner.poll() is None, (folder / "ray.txt").read_text()
            assert time.monotonic() < limit
            time.sleep(0.1)
        yield (folder / "address").read_text()
        (folder / "stop").touch()
        owner.wait(60)
    finally:
        kill_tree(owner)


def lost_ray_node(ground: Ground, stage: str) -> None:
    """One of three raylets with the actor on it; the run goes on."""
    with ray_nodes(ground.folder) as address:
        where = {"kind": "address", "address": {"ray": address}}
        ground.configure(execution=execution("serial") | {stage: {"executor": "ray", "workers": 2}}, cluster=where)
        process = ground.start()
        assert ground.until(stage, process)
        (ground.folder / "lose").touch()
        assert process.wait(900) == 0, ground.log()
        assert (ground.folder / "lost").exists()
    ground.same()


# --- the disk, the clock, two at once -------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, mib: float) -> Iterator[None]:
    """A file system of that size at the folder (as root)."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(mib * 1024)}k", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def full_disk(ground: Ground, stage: str) -> None:
    """The study's file system fills up while the stage writes: said; with space again it ends in the same bytes."""
    disk = ground.folder / "disk"
    with small_disk(disk, 64):
        study = ("--set", f"study={disk / 'study.zarr'}")
        ground.configure(execution=execution("serial"))
        before = STAGES[: STAGES.index(stage)]
        if before:
            command = [str(BDFLOW), "run", str(ground.folder / "config.yaml"), "--until", before[-1], *study]
            subprocess.run(command, check=True, capture_output=True, timeout=900)
        ballast = disk / "ballast"
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        ballast.write_bytes(bytes(max(0, free - ground.chance.choice((8, 40, 90)) * 1024)))
        ground.run(*study, code=1)
        assert "space" in ground.log() or "free" in ground.log(), ground.log()
        assert "Traceback" not in ground.log(), ground.log()
        ballast.unlink()
        ground.run(*study)
        found = snapshot(disk / "study.zarr")
    assert found == ground.expected


def damaged_chunk(ground: Ground, stage: str, how: str) -> None:
    """A chunk that the stage wrote is damaged on disk before the next stage reads it: found, computed again."""
    ground.configure(execution=execution("serial"))
    command = [str(BDFLOW), "run", str(ground.folder / "config.yaml")]
    subprocess.run([*command, "--until", stage], check=True, capture_output=True, timeout=900)
    folder = ground.study / FIRST[stage]
    files = sorted(file for file in folder.glob("*/c/**/*") if file.is_file() and file.parts[-3] != "written")
    file = ground.chance.choice([file for file in files if "written" not in file.parts])
    data = bytearray(file.read_bytes())
    if how == "corrupted":
        data[ground.chance.randrange(len(data))] ^= 0xFF
    else:
        del data[ground.chance.randrange(len(data)) :]
    file.write_bytes(data)
    found = subprocess.run([BDFLOW, "verify", command[2]], capture_output=True, text=True, check=False, timeout=600)
    assert found.returncode == 1, found.stdout
    assert FIRST[stage] in found.stdout
    subprocess.run([BDFLOW, "verify", command[2], "--repair"], check=True, capture_output=True, timeout=900)
    ground.run()
    ground.same()


def corrupted_chunk(ground: Ground, stage: str) -> None:
    """A byte of a chunk is flipped: `verify` names it, `verify --repair` computes it again."""
    damaged_chunk(ground, stage, "corrupted")


def truncated_chunk(ground: Ground, stage: str) -> None:
    """A chunk is cut short: `verify` names it, `verify --repair` computes it again."""
    damaged_chunk(ground, stage, "truncated")


JUMP = """
import datetime, itertools, sys, time
jumps = itertools.cycle((0.0, -86400.0, 40 * 365 * 86400.0, -3600.0))
real = time.time
time.time = lambda: real() + next(jumps)
plain = datetime.datetime
class Jumping(plain):
    @classmethod
    def now(cls, tz=None):
        return plain.fromtimestamp(real() + next(jumps), tz)
datetime.datetime = Jumping
from bdflow.cli.main import main
sys.argv = ["bdflow", *sys.argv[1:]]
main()
"""


def clock_jump(ground: Ground, stage: str) -> None:
    """The driver's wall clock, a faked one, jumps by days and years at each look; killed in the stage, resumed."""
    config = ground.configure(execution=execution("serial"))
    command = [sys.executable, "-c", JUMP, "run", str(config), *UNTIL]
    log = (ground.folder / "log.txt").open("a")
    process = psutil.Popen(command, stdout=log, stderr=log)
    if ground.until(stage, process):
        time.sleep(ground.chance.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert psutil.Popen(command, stdout=log, stderr=log).wait(900) == 0, ground.log()
    ground.same()
    shown = subprocess.run([BDFLOW, "status", config, "--timings"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr


def two_at_once(ground: Ground, stage: str) -> None:
    """A second run on the same study while the first is in the stage: refused, naming the first, which ends well."""
    ground.configure(execution=execution("serial"))
    first = ground.start()
    assert ground.until(stage, first)
    before = len(ground.log())
    second = ground.start().wait(60)
    if first.poll() is None or second:
        assert second == 1
        assert "in use by process" in ground.log()[before:]
    assert first.wait(900) == 0, ground.log()
    ground.same()


Faults = dict[str, tuple[Callable[[Ground, str], None], tuple[str, ...]]]
PROCESSES: Faults = {
    "driver killed (kill -9, with its workers)": (killed_driver, STAGES),
    "worker killed": (killed_worker, STAGES),
    "scheduler killed": (lost_scheduler, ("ingest", "features", "reconstruct")),
}
NODES: Faults = {
    "Dask node lost (nanny and worker)": (lost_dask_node, STAGES),
    "Ray node lost (raylet and actor)": (lost_ray_node, STAGES),
}
PLACES: Faults = {
    "disk full": (full_disk, ("ingest", "features", "regress", "reconstruct")),
    "corrupted chunk": (corrupted_chunk, STAGES),
    "truncated chunk": (truncated_chunk, STAGES),
    "clock jumps": (clock_jump, ("ingest", "features", "reconstruct")),
    "two runs on one study": (two_at_once, ("ingest", "features", "reconstruct")),
}
FAULTS = PROCESSES | NODES | PLACES
