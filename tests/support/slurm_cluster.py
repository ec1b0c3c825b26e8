"""A Slurm of N nodes on one machine, for tests: own folder, ports and munge socket, no systemd, no cgroups.

`with Cluster(folder, nodes=2) as slurm:` in a test; `python tests/support/slurm_cluster.py FOLDER [NODES]` by hand: it
prints the line that points a shell at the cluster and runs until Ctrl-C. Needs `apt-get install -y slurm-wlm munge` and
root.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue", "scancel")
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "DEADLINE")

CONFIG = """\
ClusterName=onemachine
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire={cred_expire}
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0,defer
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ReturnToService=2
KillWait=10
MinJobAge=3600
SlurmdParameters=config_overrides
GresTypes=gpu
"""


def why_not() -> str:
    """Why a cluster cannot be started here; empty if it can."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"{', '.join(missing)} not installed (apt-get install -y slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "the cluster's daemons need root"


class Cluster:
    """`nodes` nodes n0, n1, ... of `cpus` CPUs and `gpus` pretended GPUs each; all daemons end after `limit_s`.

    `requeue_s` is how long a requeued job waits before its next life (Slurm's credential life time).
    """

    def __init__(self, folder: Path, nodes: int = 2, cpus: int = 4, gpus: int = 2, requeue_s: int = 5, limit_s=1200):
        self.folder, self.nodes = folder.resolve(), nodes
        self._shape, self._requeue_s, self._limit_s = (cpus, gpus), requeue_s, limit_s
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        self.environment["SLURM_CONF"] = str(self.folder / "slurm.conf")

    def __enter__(self) -> Cluster:
        try:
            self._configure()
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _configure(self) -> None:
        for name in ("state", "spool", *(f"spool/n{i}" for i in range(self.nodes))):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        host, ports = socket.gethostname().partition(".")[0], _free_ports(self.nodes + 1)
        text = CONFIG.format(
            host=host, port=ports[0], user=getpass.getuser(), folder=self.folder, cred_expire=self._requeue_s
        )
        cpus, gpus = self._shape
        for i, port in enumerate(ports[1:]):
            text += (
                f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
                f"CPUs={cpus} RealMemory=4000 Gres=gpu:{gpus} State=UNKNOWN\n"
            )
        text += f"PartitionName=batch Nodes=n[0-{self.nodes - 1}] Default=YES MaxTime=INFINITE State=UP\n"
        (self.folder / "slurm.conf").write_text(text)
        for gpu in range(gpus):
            (self.folder / f"gpu{gpu}").touch()
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-{gpus - 1}]\n" if gpus else "")

    def _start(self) -> None:
        files = {"--key-file": "munge.key", "--socket": "munge.sock", "--pid-file": "munged.pid"}
        files |= {"--log-file": "munged.log", "--seed-file": "munge.seed"}
        self._daemon("munged", "--foreground", "--force", *(f"{k}={self.folder / v}" for k, v in files.items()))
        self._wait_for(lambda: (self.folder / "munge.sock").exists(), 10, "munged")
        self._daemon("slurmctld", "-D")
        for i in range(self.nodes):
            self._daemon("slurmd", "-D", "-N", f"n{i}")
        self._wait_for(lambda: self._idle() == self.nodes, 60, "the nodes")

    def _daemon(self, *words: str) -> None:
        command = ["timeout", "--kill-after=10", str(self._limit_s), *words]
        with open(self.folder / "daemons.log", "ab") as log:
            self._daemons.append(
                subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )

    def _idle(self) -> int:
        with contextlib.suppress(subprocess.SubprocessError):
            return len(self.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N", timeout=10).split())
        return 0

    def _wait_for(self, ready, seconds: float, what: str) -> None:
        limit = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > limit or any(d.poll() is not None for d in self._daemons):
                raise RuntimeError(f"{what} did not start: see the logs in {self.folder}\n{self.logs()}")
            time.sleep(0.1)

    def close(self) -> None:
        """Cancels what runs and ends the daemons that this object started."""
        with contextlib.suppress(subprocess.SubprocessError, RuntimeError):
            if self._daemons and (jobs := self.run("squeue", "-h", "-o", "%A", timeout=10).split()):
                self.run("scancel", "--signal=KILL", "--full", *jobs, timeout=10)
                self.run("scancel", *jobs, timeout=10)
                self._drain(10)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=15)
            except subprocess.TimeoutExpired:
                daemon.kill()
        self._daemons = []

    def _drain(self, seconds: float) -> None:
        limit = time.monotonic() + seconds
        while self.run("squeue", "-h", timeout=10) and time.monotonic() < limit:
            time.sleep(0.2)

    def run(self, *words: str, timeout: float = 30, cwd: Path | None = None, **variables: str) -> str:
        """The output of a Slurm command; raises `CalledProcessError` (its stderr in the text) on failure."""
        done = subprocess.run(
            words, env={**self.environment, **variables}, cwd=cwd, capture_output=True, text=True, timeout=timeout
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, f"{words}: {done.stderr}{done.stdout}")
        return done.stdout

    def submit(self, *words: str, cwd: Path, **variables: str) -> str:
        """`sbatch` in the folder `cwd` with more environment variables; returns the job's id."""
        return self.run("sbatch", "--parsable", *words, cwd=cwd, **variables).strip()

    def fields(self, job: str) -> list[dict[str, str]]:
        """What `scontrol show job` tells; one dictionary for each task of an array."""
        lines = self.run("scontrol", "show", "job", "--oneliner", job).splitlines()
        return [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines if line.strip()]

    def wait(self, job: str, timeout: float) -> list[dict[str, str]]:
        """The fields of a job (all tasks of an array) once it has ended; raises `TimeoutError`."""
        limit = time.monotonic() + timeout
        while time.monotonic() < limit:
            rows = self.fields(job)
            if all(row["JobState"] in FINAL for row in rows):
                return rows
            time.sleep(0.5)
        raise TimeoutError(f"job {job} has not ended after {timeout} s: {rows}")

    def logs(self, lines: int = 20) -> str:
        """The last lines of each daemon's log."""
        parts: Sequence[Path] = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {p.name}\n" + "\n".join(p.read_text().splitlines()[-lines:]) for p in parts)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


if __name__ == "__main__":
    if reason := why_not():
        sys.exit(f"error: {reason}")
    with Cluster(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2, limit_s=86400) as cluster:
        print(cluster.run("sinfo", "-N", "-l"), f"export SLURM_CONF={cluster.folder}/slurm.conf", sep="\n", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(86400)
