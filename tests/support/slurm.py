"""A real SLURM on this machine: munge, a controller and two nodes of four CPUs and two (pretended) GPUs each."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=5
GresTypes=gpu
SchedulerParameters=sched_interval=1
NodeName=n[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=4 RealMemory=8000 Gres=gpu:2
PartitionName=all Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""


def installed() -> bool:
    """Whether SLURM is here and may be started (as root)."""
    return os.geteuid() == 0 and all(shutil.which(name) for name in ("munged", "slurmctld", "slurmd", "sbatch"))


def _free_ports() -> tuple[int, int, int]:
    """One port, and two that follow one another."""
    for first in range(17_100, 20_000, 7):
        ports = (first, first + 1, first + 2)
        try:
            for port in ports:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return ports
    raise AssertionError("no free ports")


@contextmanager
def running(folder: Path) -> Iterator[Path]:
    """Start it below `folder`, point SLURM_CONF there, and stop it; yields the file of its configuration."""
    (folder / "state").mkdir(parents=True)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    for name in ("munge.key",):
        (folder / name).chmod(0o600)
    for device in ("gpu0", "gpu1"):
        (folder / device).touch()
    controller, first, last = _free_ports()
    file = folder / "slurm.conf"
    file.write_text(CONFIGURATION.format(folder=folder, controller=controller, first=first, last=last))
    (folder / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu File={folder}/gpu[0-1]\n")
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(file)
    paths = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "seed-file": "munge.seed"}
    munge = [f"--{name}={folder / value}" for name, value in paths.items()]
    try:
        _call("munged", *munge, f"--log-file={folder / 'munged.log'}", "--force")
        _call("slurmctld", "-c", "-f", str(file))
        _until(lambda: subprocess.run(["scontrol", "ping"], capture_output=True, check=False).returncode == 0)
        for node in ("n1", "n2"):
            (folder / f"spool-{node}").mkdir()
            _call("slurmd", "-N", node, "-f", str(file))
        _until(lambda: _output("sinfo", "-h", "-o", "%D %t") == "2 idle")
        yield file
    finally:
        subprocess.run(["scancel", "--user=root"], capture_output=True, check=False)
        for name in ("slurmd-n1", "slurmd-n2", "slurmctld", "munged"):
            _end(folder / f"{name}.pid")
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before


def queue() -> list[str]:
    """The jobs that are there, a line each: id, name, state."""
    return _output("squeue", "-h", "-o", "%A %j %T").splitlines()


def _output(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def _call(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (words, done.stdout, done.stderr)


def _until(true, seconds: float = 30) -> None:
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, _output("sinfo", "-N", "-l")
        time.sleep(0.2)


def _end(pid_file: Path) -> None:
    if not pid_file.is_file():
        return
    pid = int(pid_file.read_text())
    for _ in range(100):
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
