"""A Slurm of several nodes on this machine, for tests: `python tests/support/slurm.py start FOLDER`
prints the SLURM_CONF to export, `stop FOLDER` ends it. Needs no systemd and no root.

It is a real one, of Debian's packages `slurm-wlm` and `munge`: a controller and a `slurmd` for each
node, each at a port of its own, all run by the user who starts it. What they write lies in FOLDER,
which should have a short path: munge's socket is there. A job that takes more memory than it asked
for is killed. There is no accounting, as on many small clusters, so `sacct` says nothing.
"""

from __future__ import annotations

import argparse
import os
import pwd
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

NODES = ("node1", "node2", "node3")
CPUS = 2
MEMORY_MIB = 7000
PATIENCE = 60.0
# Debian has the daemons where only root's PATH looks.
SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")

CONF = """
ClusterName=fanin
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=1
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
ReturnToService=2
RebootProgram=/bin/true
SlurmdTimeout=10
KillWait=2
MpiDefault=none
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=ALL Default=YES PriorityTier=1 GraceTime=15
PartitionName=urgent Nodes=ALL PriorityTier=10
"""


def program(name: str) -> str | None:
    """The path of one of Slurm's programs or munge's; None where it is not installed."""
    return shutil.which(name, path=SBIN)


def is_installed() -> bool:
    return all(map(program, PROGRAMS))


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Slurm:
    """The cluster in `folder`: started by `start`, ended by `stop`, also by another process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.environment = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # munge wants folders that nobody else can write
        (self.folder / "state").mkdir(exist_ok=True)
        host, (controller, *ports) = socket.gethostname(), free_ports(1 + len(NODES))
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} "
            f"RealMemory={MEMORY_MIB} State=UNKNOWN"
            for name, port in zip(NODES, ports, strict=True)
        )
        user = pwd.getpwuid(os.geteuid()).pw_name
        conf = CONF.format(
            host=host, controller=controller, folder=self.folder, user=user, nodes=nodes
        )
        (self.folder / "slurm.conf").write_text(conf)
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        self._daemon(
            "munged", "--foreground", f"--key-file={key}", f"--socket={self.folder}/munge.socket",
            f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/munge.seed", "--num-threads=2",
        )  # fmt: skip
        self._wait_for((self.folder / "munge.socket").exists)
        self._daemon("slurmctld", "-D")
        for name in NODES:
            self.start_node(name)
        self._wait_for(lambda: self.states() == dict.fromkeys(NODES, "idle"))

    def start_node(self, name: str) -> None:
        (self.folder / f"spool-{name}").mkdir(exist_ok=True)
        self._daemon("slurmd", "-D", "-N", name, log=name)

    def kill_node(self, name: str) -> None:
        """End a node as a power cut would: first who could tell the controller of it."""
        jobs = self.run("squeue", "--noheader", f"--nodelist={name}", "--format=%A").split()
        daemon = psutil.Process(int((self.folder / f"{name}.process").read_text()))
        steps = [each for each in self._processes() if self._job_of_step(each) in jobs]
        others = [
            each
            for each in self._processes()
            if self._environment_of(each).get("SLURMD_NODENAME") == name
        ]
        for process in (daemon, *steps, *others):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def states(self) -> dict[str, str]:
        """Each node's state, as `sinfo` has it."""
        lines = self.run("sinfo", "--noheader", "--Node", "--format=%N %t", check=False)
        return dict(line.split() for line in lines.splitlines())

    def run(self, name: str, *arguments: str, check: bool = True) -> str:
        """What one of Slurm's programs prints."""
        path = program(name)
        assert path
        done = subprocess.run(
            [path, *arguments], env=self.environment, capture_output=True, text=True, check=check
        )
        return done.stdout

    def stop(self) -> None:
        """End the jobs and the daemons, and wait until they are gone."""
        self.run("scancel", "--me", "--signal=KILL", "--full", check=False)
        files = sorted(self.folder.glob("*.process"))
        ended = list(self._processes())
        for path in files:
            with suppress(psutil.NoSuchProcess):
                ended.append(psutil.Process(int(path.read_text())))
        for process in ended:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _, left = psutil.wait_procs(ended, timeout=10)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)
        for path in files:
            path.unlink()

    def _daemon(self, name: str, *arguments: str, log: str | None = None) -> None:
        path = program(name)
        assert path, f"{name} is not installed"
        with open(self.folder / f"{log or name}.output", "ab") as output:
            process = subprocess.Popen(
                [path, *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        (self.folder / f"{log or name}.process").write_text(str(process.pid))

    def _wait_for(self, ready) -> None:
        deadline = time.monotonic() + PATIENCE
        while not ready():
            if time.monotonic() > deadline:
                logs = "\n".join(p.read_text()[-2000:] for p in self.folder.glob("*.output"))
                self.stop()
                raise TimeoutError(f"the Slurm in {self.folder} does not start:\n{logs}")
            time.sleep(0.1)

    def _processes(self) -> Iterator[psutil.Process]:
        """What runs of this cluster's jobs, and who looks after it."""
        for process in psutil.process_iter():
            environment = self._environment_of(process)
            is_ours = environment.get("SLURM_CONF") == self.environment["SLURM_CONF"]
            if is_ours and ("SLURM_JOB_ID" in environment or self._job_of_step(process)):
                yield process

    @staticmethod
    def _job_of_step(process: psutil.Process) -> str | None:
        """The job of a `slurmstepd`, which calls itself `slurmstepd: [7.batch]`."""
        with suppress(psutil.Error):
            step = re.match(r"slurmstepd: \[(\d+)", " ".join(process.cmdline()))
            return step[1] if step else None
        return None

    @staticmethod
    def _environment_of(process: psutil.Process) -> dict[str, str]:
        """Not psutil's: a `slurmstepd` writes its name over the first variables, and psutil ends
        at the first empty one."""
        try:
            text = Path(f"/proc/{process.pid}/environ").read_bytes().decode(errors="replace")
        except OSError:
            return {}
        pairs = (entry.partition("=") for entry in text.split("\0"))
        return {name: value for name, _, value in pairs}


@contextmanager
def running(folder: Path) -> Iterator[Slurm]:
    slurm = Slurm(folder)
    slurm.start()
    try:
        yield slurm
    finally:
        slurm.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("start", "stop"))
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    slurm = Slurm(asked.folder)
    if asked.what == "stop":
        slurm.stop()
    else:
        slurm.start()
        print(f"export SLURM_CONF={slurm.environment['SLURM_CONF']}")
