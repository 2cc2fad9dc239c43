"""The pipeline under a real SLURM on this machine: jobs, steps, batch scripts, arrays, time limits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from bdflow.config import recipes
from bdflow.simulation.dataset import SimulateOptions, simulate
from bdflow.stores import Store, Study
from tests.conftest import execution, snapshot
from tests.support import slurm, waits_while_painting

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
WHOLE = pytest.mark.integration(kind="SLURM: a whole run")
LOST = pytest.mark.integration(kind="SLURM: jobs that end")
REFUSED = pytest.mark.integration(kind="SLURM: what cannot be had")
BDFLOW = Path(sys.executable).with_name("bdflow")
SCRIPTS = Path(__file__).parents[2] / "cluster" / "slurm"
UNTIL = ("--until", "evaluate")


@pytest.fixture(scope="module", autouse=True)
def real_slurm(tmp_path_factory):
    assert slurm.installed(), "needs root and Debian's slurm-wlm and munge"
    os.environ["PATH"] = f"{BDFLOW.parent}:{os.environ['PATH']}"
    with slurm.running(tmp_path_factory.mktemp("slurm") / "run"):
        yield


@pytest.fixture(autouse=True)
def empty_queue():
    """Whatever a test does, no job of it is left."""
    yield
    assert slurm.queue() == []


def configuration(settings, root: Path, where: dict, **sections) -> Path:
    root.mkdir(exist_ok=True)
    mine = {"host": "127.0.0.1", "time": "10", "logs": str(root / "logs")} | sections.pop("slurm", {})
    content = settings(root, execution=where, cluster={"kind": "slurm", "slurm": mine}, **sections)
    (root / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return root / "config.yaml"


@pytest.fixture(scope="module")
def reference(undisturbed) -> dict[str, bytes]:
    """What an undisturbed run on one process writes."""
    return snapshot(undisturbed)


def run(config: Path, *more: str) -> subprocess.Popen[str]:
    command = [str(BDFLOW), "run", str(config), *UNTIL, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def states(seconds: float, true) -> list[str]:
    """Wait until the queue is as wanted; every line that was seen there."""
    seen: list[str] = []
    limit = time.monotonic() + seconds
    while not true(lines := slurm.queue()):
        seen += [line for line in lines if line not in seen]
        assert time.monotonic() < limit, seen
        time.sleep(0.3)
    return seen


def submit(script: str, *words: object, options: tuple[str, ...] = ()) -> str:
    command = ["sbatch", "--parsable", *options, str(SCRIPTS / script), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def ended(seconds: float) -> list[str]:
    return states(seconds, lambda lines: not lines)


def shown(job: str, key: str) -> str:
    words = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=False).stdout.split()
    return next(word.partition("=")[2] for word in words if word.startswith(key + "="))


def update(job: str, *words: str) -> None:
    done = subprocess.run(["scontrol", "update", f"JobId={job}", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def minutes_running(job: str) -> int:
    """Whole minutes for which a job has run since its last start, within its first day."""
    hours, minutes, _ = shown(job, "RunTime").split(":")
    return 60 * int(hours) + int(minutes)


PICTURES = "reconstructions/brain_diffuser/subj01/full"
SIZED = {stage: {**where, "memory": "1 GiB", "threads": 1} for stage, where in execution("dask", 2).items()}


@WHOLE
def test_dask_jobs_by_one_command(settings, reference, tmp_path):
    process = run(configuration(settings, tmp_path, SIZED))
    seen = states(120, lambda lines: process.poll() is not None)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert sum("RUNNING" in line for line in seen) >= 2, (seen, out)
    assert snapshot(tmp_path / "study.zarr") == reference


@WHOLE
def test_ray_nodes_by_one_command(settings, reference, tmp_path):
    where = execution("serial") | {"features": {"executor": "ray", "workers": 2}}
    process = run(configuration(settings, tmp_path, where))
    seen = states(200, lambda lines: process.poll() is not None)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert sum("RUNNING" in line for line in seen) >= 2, (seen, out)
    assert snapshot(tmp_path / "study.zarr") == reference


@WHOLE
def test_inside_an_allocation_of_two_nodes_with_gpus(settings, reference, tmp_path):
    """The batch script: Ray's head and Dask's scheduler in the job, workers of both as steps on both nodes."""
    where = execution("dask", 2) | {"features": {"executor": "ray", "workers": 2, "gpus": 1}}
    config = configuration(settings, tmp_path, where)
    log = tmp_path / "job.log"
    job = submit("nodes.sbatch", config, *UNTIL, options=("--gpus-per-node=1", "--mem=4000", f"--output={log}"))
    seen = ended(280)
    assert shown(job, "JobState") == "COMPLETED", log.read_text()
    assert all(line.startswith(job) for line in seen), "steps, no further jobs"
    assert shown(job, "NumNodes") == "2"
    assert snapshot(tmp_path / "study.zarr") == reference


@WHOLE
@pytest.mark.timeout(2000)
def test_the_demo_by_jobs_and_in_an_allocation(tmp_path):
    """The shipped demo, two of its subjects, both systems and executors, with fewer stimuli, variants and steps and
    smaller chunks: by one command that asks for jobs of both, and as one job of two nodes; the same bytes."""
    content = yaml.safe_load(recipes()["demo"].read_text())
    content["subjects"] = content["subjects"][::2]
    few = SimulateOptions(subjects=tuple(content["subjects"]), n_shared=6, n_own=24, volume_shape=(12, 14, 11))
    simulate(tmp_path / "nsd", few)
    content["chunks"] |= {"stimuli": 16, "images": 4}
    for painted in content["painters"].values():
        painted |= {"steps": 4, "variants": painted["variants"][:1], "controls": painted["controls"][-1:]}
    content["dataset"]["root"], content["report"]["path"] = str(tmp_path / "nsd"), str(tmp_path / "report")
    for stage in content["execution"].values():
        stage |= {"memory": "1500 MiB", "threads": 1}
    made = {}
    for name in ("jobs", "allocation"):
        mine = {"host": "127.0.0.1", "time": "30", "logs": str(tmp_path / "logs")}
        content |= {"study": str(tmp_path / f"{name}.zarr"), "cluster": {"kind": "slurm", "slurm": mine}}
        config, log = tmp_path / f"{name}.yaml", tmp_path / f"{name}.log"
        config.write_text(yaml.safe_dump(content, sort_keys=False))
        if name == "jobs":
            process = run(config)
            seen = states(900, lambda lines, process=process: process.poll() is not None)
            out, _ = process.communicate()
            assert process.returncode == 0, out
            assert len({line.split()[0] for line in seen}) >= 2, seen
        else:
            job = submit("nodes.sbatch", config, *UNTIL, options=("--mem=6000", f"--output={log}"))
            ended(900)
            assert shown(job, "JobState") == "COMPLETED", log.read_text()
        made[name] = snapshot(tmp_path / f"{name}.zarr")
    assert {f"metrics/brain_diffuser/{subject}" for subject in content["subjects"]} < set(
        Study(tmp_path / "jobs.zarr").paths()
    )
    assert made["jobs"] == made["allocation"]


@WHOLE
def test_an_array_of_subjects(settings, tmp_path):
    config = configuration(settings, tmp_path, execution("serial"))
    options = ("--array=1,2", "--cpus-per-task=2", "--mem=2000", f"--output={tmp_path}/%a.log")
    submit("subjects.sbatch", config, tmp_path / "studies", *UNTIL, options=options)
    ended(200)
    for subject in ("subj01", "subj02"):
        study = tmp_path / "studies" / f"{subject}.zarr"
        assert (study / "metrics" / "brain_diffuser" / subject).is_dir(), (tmp_path / f"{subject[-1]}.log").read_text()
        alone = [BDFLOW, "status", config, "--set", f"subjects=[{subject}]", "--set", f"study={study}"]
        table = subprocess.run(alone, capture_output=True, text=True, check=False).stdout
        assert " sealed, 0 partial, 0 stale;" in table


@LOST
def test_a_job_at_its_time_limit_is_requeued_and_resumes(settings, reference, tmp_path, monkeypatch):
    """The script as it ships, five minutes before the limit: which comes that near, by `scontrol`, when some pictures
    are painted and the job waits before the next."""
    waits = waits_while_painting.install(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv(waits_while_painting.VARIABLE, str(waits))
    config, log = configuration(settings, tmp_path / "limited", execution("serial")), tmp_path / "job.log"
    job = submit("node.sbatch", config, *UNTIL, options=("--time=60", "--mem=3000", f"--output={log}"))
    pictures = Store(tmp_path / "limited" / "study.zarr", PICTURES)
    states(300, lambda lines: waits.exists() and len(pictures.missing()) < pictures.n_partitions)
    update(job, f"TimeLimit={minutes_running(job) + 5}")  # SLURM looks every 30 s
    states(200, lambda lines: any("PENDING" in line for line in lines))
    assert pictures.missing(), log.read_text()
    time.sleep(6)
    update(job, "StartTime=now", "TimeLimit=60")  # SLURM holds requeued jobs back for two minutes; a few seconds do
    ended(300)
    assert shown(job, "JobState") == "COMPLETED", log.read_text()
    assert shown(job, "Restarts") == "1"
    assert log.read_text().count("stopped. Run the same command again") == 1
    assert log.read_text().count("Near the time limit: stopped, requeued (restart 1).") == 1
    assert snapshot(tmp_path / "limited" / "study.zarr") == reference


@LOST
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_cancels_the_jobs(settings, reference, tmp_path, number):
    config = configuration(settings, tmp_path, SIZED)
    process = run(config)
    states(60, lambda lines: sum("RUNNING" in line for line in lines) == 2)
    time.sleep(2)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert slurm.queue() == []
    again = run(config, "--set", "cluster.kind=local")
    out, _ = again.communicate(timeout=200)
    assert again.returncode == 0, out
    assert snapshot(tmp_path / "study.zarr") == reference


@LOST
def test_a_cancelled_job_is_replaced(settings, reference, tmp_path):
    process = run(configuration(settings, tmp_path, SIZED))
    states(60, lambda lines: sum("RUNNING" in line for line in lines) == 2)
    time.sleep(4)
    subprocess.run(["scancel", slurm.queue()[0].split()[0]], check=True)
    seen = states(200, lambda lines: process.poll() is not None)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert len({line.split()[0] for line in seen}) >= 3, seen
    assert snapshot(tmp_path / "study.zarr") == reference


@LOST
def test_jobs_that_cannot_work_are_not_asked_for_for_ever(settings, tmp_path):
    config = configuration(settings, tmp_path, SIZED, slurm={"setup": ["echo no such module >&2; exit 3"]})
    process = run(config)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "workers in a row that ended before they took part" in out
    assert "no such module" in out


@REFUSED
@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"executor": "ray", "workers": 2, "gpus": 4}, "2 workers of 1 CPU, 4 GPUs each = 8 GPUs"),
        ({"executor": "dask", "workers": 1, "memory": "900 GiB"}, "1 worker of 1 CPU, 900.00 GiB each"),
    ],
)
def test_more_than_there_is_is_refused_before_anything_starts(settings, tmp_path, stage, words):
    where = execution("serial") | {"reconstruct": stage}
    process = run(configuration(settings, tmp_path, where))
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert words in out
    assert "of 4 CPUs, 2 GPUs, 7.81 GiB" in out
    assert not (tmp_path / "study.zarr" / "betas").exists(), "the first stage has not begun"


@REFUSED
def test_what_slurm_itself_refuses_is_said_at_once(settings, tmp_path):
    config = configuration(settings, tmp_path, SIZED, slurm={"options": ["--constraint=quantum"], "partition": "all"})
    for options, words in (((), "feature"), (("--set", "cluster.slurm.partition=none"), "no node of partition none")):
        process = run(config, *options)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 1
        assert words in out.lower()
