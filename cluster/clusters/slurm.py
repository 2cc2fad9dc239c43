"""Workers that SLURM starts: Dask's as jobs of dask-jobqueue, Ray's nodes (and, inside an allocation, Dask's workers)
as `srun` tasks. One worker is one job, or one step: what is lost with it is one worker, and it is asked for again.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdflow.cluster.access import NO_PAGES, dask_security, key_options, private_folder
from bdflow.cluster.clusters.local import UNWATCHED
from bdflow.cluster.errors import ClusterError
from bdflow.cluster.limits import excess, gib, gpu_capacity
from bdflow.cluster.phases import DEPTH
from bdflow.cluster.scratch import Scratch, nobody
from bdflow.cluster.threads import environment
from bdflow.cluster.types import Resources, SlurmSettings
from bdflow.errors import counted

if TYPE_CHECKING:
    from distributed import SpecCluster

POLL_INTERVAL = 5.0  # seconds between two questions to SLURM which jobs there are
MAX_FAILED_STARTS = 3  # jobs in a row that may end before their worker turned up
SHORT_RUN = 60.0  # seconds; an `srun` that ends sooner has not worked
UNUSABLE_STATES = ("down", "drain", "fail", "maint", "inval", "unk", "boot", "power", "planned")
# What glibc settles on by itself; Dask's nanny would have it give memory back after every large array.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(2**26), "MALLOC_MMAP_THRESHOLD_": str(2**25)}


@dataclass(frozen=True)
class Node:
    """What one node offers; memory in bytes."""

    name: str
    cpus: int
    memory: int
    gpus: int

    def capacity(self, need: Resources) -> int:
        """How many such workers fit on it."""
        fit = [self.cpus // need.threads]
        if need.gpus:
            fit.append(gpu_capacity(need.gpus, self.gpus))
        if need.memory:
            fit.append(self.memory // need.memory)
        return min(fit)


def inside() -> bool:
    """Whether this process runs in an allocation."""
    return "SLURM_JOB_ID" in os.environ


def slurm_output(words: Sequence[str]) -> str:
    """What a command of SLURM prints. Raises ClusterError if there is none, or it fails."""
    if shutil.which(words[0]) is None:
        raise ClusterError(
            "cluster `slurm`",
            found=f"no command `{words[0]}` on this machine",
            expected="SLURM's commands",
            action="run on a login node or in a job of SLURM, or choose another kind of cluster",
        )
    done = subprocess.run(words, capture_output=True, timeout=120, check=False, encoding="utf-8", errors="replace")
    if done.returncode:
        raise ClusterError(
            f"`{' '.join(words)}`",
            found=f"that it failed ({done.stderr.strip() or f'exit code {done.returncode}'})",
            expected="that SLURM carries it out",
            action="see whether SLURM answers (`sinfo`), and whether partition and account are right",
        )
    return done.stdout


def nodes(slurm: SlurmSettings) -> list[Node]:
    """The nodes of the allocation this process is in with what it got of them, or those of the partition."""
    if inside():
        return _allocated(os.environ)
    found = {}
    only = ["--partition", slurm.partition] if slurm.partition else []
    for line in slurm_output(["sinfo", "--noheader", "--Node", *only, "--format=%N|%c|%m|%G|%T|%P"]).splitlines():
        name, cpus, memory, gres, state, partition = line.strip().split("|")
        if not any(word in state.lower() for word in UNUSABLE_STATES) and (slurm.partition or partition.endswith("*")):
            found[name] = Node(name, int(cpus.rstrip("+")), int(memory.rstrip("+")) * 2**20, _gpus(gres))
    return list(found.values())


def _gpus(gres: str) -> int:
    """Devices in "gpu:2", "gpu:a100:4(S:0-1),nvme:1", "(null)"."""
    return sum(int(count) for count in re.findall(r"\bgpu(?::[^:,()]+)?:(\d+)", gres))


def _allocated(variables: Mapping[str, str]) -> list[Node]:
    counts: list[int] = []
    for cpus, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", variables.get("SLURM_JOB_CPUS_PER_NODE", "1")):
        counts += [int(cpus)] * int(times or 1)
    gpus = int(variables.get("SLURM_GPUS_ON_NODE", 0))
    found = []
    for number, cpus in enumerate(counts):
        if "SLURM_MEM_PER_NODE" in variables:
            memory = int(variables["SLURM_MEM_PER_NODE"]) * 2**20
        elif "SLURM_MEM_PER_CPU" in variables:
            memory = int(variables["SLURM_MEM_PER_CPU"]) * 2**20 * cpus
        else:
            memory = sys.maxsize
        found.append(Node(f"node {number}", cpus, memory, gpus))
    return found


def share(threads: int) -> list[str]:
    """The memory of the allocation that goes with that many CPUs: a step would take all of it, and others wait."""
    there = _allocated(os.environ)
    if any(node.memory == sys.maxsize for node in there):
        return []
    return [f"--mem={min(node.memory * threads // node.cpus for node in there) // 2**20}M"]


def sizes(need: Resources) -> list[str]:
    """The options that say how large one worker is, but for its CPUs."""
    found = [f"--gpus-per-node={int(need.gpus)}"] if need.gpus else []
    return found + ([f"--mem={math.ceil(need.memory / 2**20)}M"] if need.memory else [])


def refuse_nodes(need: Resources, slurm: SlurmSettings) -> None:
    """Refuse what SLURM could never place; outside an allocation workers may wait for one another.

    Raises
    ------
    ClusterError : with what was asked for and what there is.
    """
    if need.gpus != int(need.gpus):
        raise ClusterError(
            "cluster `slurm`",
            found=f"{counted(need.gpus, 'GPU')} a worker asked for",
            expected="whole GPUs: SLURM gives no part of one",
            action="ask for 1, or for 0",
        )
    there = nodes(slurm)
    where = "of this allocation" if inside() else f"of partition {slurm.partition or '(default)'}"
    if not there:
        raise ClusterError(
            "cluster `slurm`",
            found=f"no node {where} that is up",
            expected="one at least",
            action="see with `sinfo` what is up, and correct the partition",
        )
    capacity = sum(node.capacity(need) for node in there)
    if capacity and not inside():  # SLURM knows more: limits of accounts and partitions
        size = ["--nodes=1", "--ntasks=1", f"--cpus-per-task={need.threads}", *sizes(need)]
        slurm_output(["sbatch", "--test-only", *slurm.job_options(), *size, "--wrap=true"])
        return
    if capacity >= need.workers:
        return
    each = counted(need.threads, "CPU")
    each += f", {counted(need.gpus, 'GPU')}" if need.gpus else ""
    each += f", {gib(need.memory)}" if need.memory else ""
    best = max(there, key=lambda node: (node.gpus, node.cpus, node.memory))
    has = f"{counted(len(there), 'node')} {where}, of {counted(best.cpus, 'CPU')}, {counted(best.gpus, 'GPU')}"
    has += f", {gib(best.memory)}" if best.memory < sys.maxsize else ""
    raise excess(
        f"{counted(need.workers, 'worker')} of {each} each = {counted(need.workers * need.gpus, 'GPU')}",
        f"{has} (enough for {capacity} such workers)",
        "ask for fewer workers or less for each, or for another partition or allocation",
    )


def host(slurm: SlurmSettings) -> str:
    """The address under which nodes reach this machine."""
    from distributed.utils import get_ip

    return slurm.host or get_ip()


def spawn_variables(threads: int) -> dict[str, str]:
    """What a worker's environment needs before libraries are loaded, and Dask's nanny must not replace."""
    wanted = environment(threads) | MALLOC
    return wanted | {
        "DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON": repr(wanted),
        "DASK_DISTRIBUTED__WORKER__HTTP__ROUTES": "[]",
        **{_variable(setting): str(value) for setting, value in UNWATCHED.items()},
    }


def _variable(setting: str) -> str:
    """The environment variable of one of Dask's settings."""
    return "DASK_" + setting.upper().replace("-", "_").replace(".", "__")


class Steps:
    """Commands on nodes, each by an `srun` of its own: a step of this allocation, or a job if there is none.

    Parameters
    ----------
    command : what each runs, on the machine that SLURM chooses.
    need : CPUs, GPUs and memory of each; `need.workers` of them run.
    variables : of their environment, besides.
    """

    def __init__(
        self, slurm: SlurmSettings, command: Sequence[str], need: Resources, variables: Mapping[str, str] | None = None
    ) -> None:
        self.slurm, self.command, self.need, self.variables = slurm, list(command), need, dict(variables or {})
        self.name = f"worker-{uuid.uuid4().hex[:10]}"
        self.failed_starts = 0
        self.running: list[tuple[subprocess.Popen[bytes], float]] = []
        slurm.logs.mkdir(parents=True, exist_ok=True)
        self.log = slurm.logs / f"{self.name}.log"
        self.ensure_running()

    def ensure_running(self) -> None:
        """Start what is missing. Raises ClusterError when commands end as soon as they begin."""
        alive = []
        for process, since in self.running:
            if process.poll() is None:
                alive.append((process, since))
                continue
            self.failed_starts = self.failed_starts + 1 if time.monotonic() - since < SHORT_RUN else 0
        self.running = alive
        if self.failed_starts >= MAX_FAILED_STARTS * self.need.workers:
            raise _failed_starts_error(self.failed_starts, self.log)
        while len(self.running) < self.need.workers:
            self.running.append((self._start(), time.monotonic()))

    def _start(self) -> subprocess.Popen[bytes]:
        words = ["srun", "--quiet", "--nodes=1", "--ntasks=1", f"--cpus-per-task={self.need.threads}"]
        words += ["--kill-on-bad-exit=1", f"--job-name={self.name}"]
        words += ["--exact"] if inside() else self.slurm.job_options()
        words += sizes(self.need)
        if inside() and not self.need.memory:
            words += share(self.need.threads)
        shell = "\n".join([*self.slurm.setup, 'exec "$0" "$@"'])
        variables = {**os.environ, **spawn_variables(self.need.threads), **self.variables}
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*words, "bash", "-c", shell, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=variables,
                start_new_session=True,
            )

    def stop(self) -> None:
        """End all of them and wait until SLURM has."""
        for process, _ in self.running:
            process.terminate()
        if not inside():
            cancel(self.name)
        for process, _ in self.running:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running = []


def cancel(name: str) -> None:
    """Cancel every job of that name, and wait (at most half a minute) until none is left."""
    with contextlib.suppress(ClusterError, subprocess.TimeoutExpired):
        slurm_output(["scancel", f"--name={name}"])
        until = time.monotonic() + 30
        while (
            slurm_output(["squeue", "--noheader", f"--name={name}", "--format=%A"]).strip() and time.monotonic() < until
        ):
            time.sleep(0.2)


def _failed_starts_error(times: int, log: Path) -> ClusterError:
    tail = (
        "\n".join(log.read_text(errors="replace", encoding="utf-8").splitlines()[-12:])
        if log.is_file()
        else "(nothing)"
    )
    return ClusterError(
        log,
        found=f"{times} workers in a row that ended before they took part; this log ends with:\n{tail}",
        expected="nodes that see the same Python environment and files as this machine, and reach its ports",
        action="mend what the log says (`setup` lines, `host`, `partition`), and run the same command",
    )


class DaskOnSlurm:
    """An own Dask scheduler in this process, its workers under SLURM. The same shape as `LocalCluster`."""

    def __init__(
        self, resources: Resources, slurm: SlurmSettings, dashboard: str | None, scratch: Scratch | None = None
    ) -> None:
        import dask
        from distributed import Client

        from bdflow.cluster.clusters.local import scheduler_options

        refuse_nodes(resources, slurm)
        self.resources, self.slurm = resources, slurm
        self.name = f"worker-{uuid.uuid4().hex[:10]}"
        self.steps: Steps | None = None
        self.failed_starts, self.polled = 0, time.monotonic()
        self.ids: dict[str, str] = {}
        self._security, self._secrets = dask_security(), contextlib.ExitStack()
        self._keys = private_folder(slurm.logs, scratch or nobody())
        self._secrets.callback(shutil.rmtree, self._keys, ignore_errors=True)
        options = scheduler_options(host(slurm), dashboard, self._security)
        try:
            with dask.config.set({**UNWATCHED, **(NO_PAGES if dashboard is None else {})}):
                self.cluster: Any = self._inside(options) if inside() else self._jobs(options)
        except BaseException:
            self._secrets.close()
            raise
        self.client = Client(self.cluster, set_as_default=False)

    def _inside(self, options: dict[str, object]) -> SpecCluster:
        from distributed import Scheduler, SpecCluster

        spec = {"cls": Scheduler, "options": options}
        cluster = SpecCluster(scheduler=spec, security=self._security, silence_logs=50)
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address]
        worker += ["--nthreads", str(DEPTH), "--memory-limit", str(self.resources.memory or 0), "--no-dashboard"]
        worker += ["--death-timeout", "60", *key_options(self._security, self._keys)]
        self.steps = Steps(self.slurm, worker, self.resources)
        return cluster

    def _jobs(self, options: dict[str, object]) -> SpecCluster:
        try:
            from dask_jobqueue import SLURMCluster
        except ImportError as error:
            raise ClusterError(
                "cluster `slurm`",
                found="no package dask-jobqueue",
                expected="it installed: through it SLURM starts Dask's workers",
                action="install it: pip install 'bdflow[slurm]'",
            ) from error
        need, slurm = self.resources, self.slurm
        exports = [f"export {name}={_quoted(value)}" for name, value in spawn_variables(need.threads).items()]
        extra = [*slurm.options, *sizes(replace(need, memory=None))]
        cluster = SLURMCluster(
            cores=need.threads,
            processes=1,
            memory=f"{need.memory}B" if need.memory else "1GiB",
            job_directives_skip=() if need.memory else ("--mem",),
            queue=slurm.partition,
            account=slurm.account,
            walltime=slurm.time,
            job_name=self.name,
            job_extra_directives=["--nodes=1", *extra],
            job_script_prologue=[*exports, *slurm.setup],
            worker_extra_args=["--nthreads", str(DEPTH), "--memory-limit", str(need.memory or 0), "--no-dashboard"],
            log_directory=str(slurm.logs),
            death_timeout=60,
            scheduler_options=options,
            security=self._security,
            shared_temp_directory=str(self._keys.resolve()),
            silence_logs=50,
        )
        cluster.scale(need.workers)
        return cluster

    def ready(self) -> set[str]:
        """Addresses of the workers that are up; jobs that ended are asked for anew."""
        if self.steps is not None:
            self.steps.ensure_running()
        elif time.monotonic() - self.polled > POLL_INTERVAL:
            self.polled = time.monotonic()
            self._replace()
        return set(self.cluster.scheduler.workers)

    def _replace(self) -> None:
        for number in self._gone():
            del self.cluster.workers[number]
        if self.failed_starts >= MAX_FAILED_STARTS:
            logs = [file for file in self.slurm.logs.glob(f"{self.name}-*") if file.stat().st_size]
            newest = max(logs, key=lambda file: file.stat().st_mtime, default=self.slurm.logs)
            raise _failed_starts_error(self.failed_starts, newest)
        if len(self.cluster.workers) < len(self.cluster.worker_spec):
            self.cluster.scale(self.resources.workers)

    def _gone(self) -> list[object]:
        """Numbers of the jobs that are no more."""
        listed = slurm_output(["squeue", "--noheader", f"--name={self.name}", "--format=%A"]).split()
        here = {str(worker.name) for worker in list(self.cluster.scheduler.workers.values())}
        gone = []
        for number, job in list(self.cluster.workers.items()):
            if str(number) in here:
                self.failed_starts = 0
                self.ids[str(number)] = job.job_id
            elif job.job_id not in listed:  # None if `sbatch` refused it
                gone.append(number)
                if self.ids.pop(str(number), None) != job.job_id:
                    self.failed_starts += 1
        return gone

    def kill(self) -> None:
        """Stop at once, whatever the workers are busy with."""
        self.stop()

    def stop(self) -> None:
        """Stop scheduler and workers; no job is left in the queue."""
        if self.steps is not None:
            self.steps.stop()
        else:
            cancel(self.name)
        with contextlib.suppress(OSError, TimeoutError):
            self.client.close()
            self.cluster.close()
        if self.steps is None:
            cancel(self.name)
        self._secrets.close()


def _quoted(value: str) -> str:
    import shlex

    return shlex.quote(value)


def ray_node(address: str, need: Resources, node_ip: str | None = None) -> list[str]:
    """The command that adds one worker's share of a node to the Ray cluster at `address`."""
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}", "--block"]
    words += [f"--num-cpus={need.threads}", f"--num-gpus={math.ceil(need.gpus)}", "--disable-usage-stats"]
    words.append("--include-log-monitor=false")  # a process that sends logs to drivers, and the driver shows none
    words += [f"--object-store-memory={100 * 2**20}"]
    if need.memory:
        words.append(f"--memory={need.memory}")
    return words + ([f"--node-ip-address={node_ip}"] if node_ip else [])
