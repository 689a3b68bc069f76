"""A SLURM of two nodes on this host, as root, apart from any other that runs here.

Settings that matter: credentials expire after 5 s, or a requeued job would wait for two minutes;
more CPUs are claimed than the machine has, so that jobs run side by side.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

HOST = socket.gethostname().split(".")[0]  # the first node's name; the second, n2, does not resolve
PROGRAMS = ["munged", "slurmctld", "slurmd", "sbatch"]

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
ReturnToService=2
KillWait=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
NodeName={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 State=UNKNOWN
PartitionName=main Nodes={host},n2 Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=30
PartitionName=high Nodes={host},n2 MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str | None:
    """What this machine lacks to run a SLURM of its own; None: nothing."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"no {', '.join(missing)} (Debian: slurmctld slurmd slurm-client munge)"
    if os.getuid() != 0:
        return "only root can run slurmd"
    return None


@contextmanager
def two_nodes(folder: Path) -> Iterator[None]:
    """Up and idle while the context lasts, with SLURM_CONF set; all of it is ended after.

    Partition "high" takes nodes from "main", whose jobs get their --signal and then 30 s.
    """
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=HOST, ports=_free_ports(3), folder=folder))
    with ExitStack() as stack:
        before = {name: os.environ.get(name) for name in ("PATH", "SLURM_CONF")}
        stack.callback(_restore, before)
        os.environ |= {"PATH": _path(), "SLURM_CONF": str(conf)}
        files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        # --force: its files lie where root alone may go.
        _start(stack, "munged", "-F", "--force", f"--socket={folder}/munge.socket", *files)
        wait_for(lambda: (folder / "munge.socket").exists(), 20, "munged")
        _start(stack, "slurmctld", "-D", "-c")
        for node in (HOST, "n2"):
            _start(stack, "slurmd", "-D", "-N", node)
        idle = ["sinfo", "-h", "-N", "-pmain", "-tidle", "-o%N"]
        wait_for(lambda: len(_output(*idle).split()) == 2, 60, "two idle nodes")
        stack.callback(_cancel_all)
        yield


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Return as soon as ``condition()`` holds.

    Raises:
        TimeoutError: naming ``what``, when it does not hold for so long.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.1)


def _path() -> str:
    return os.environ["PATH"] + ":/usr/sbin:/sbin"  # where Debian has the daemons, also for others


def _start(stack: ExitStack, *command: str) -> None:
    # In the foreground, so that these very processes can be ended.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.terminate)


def _cancel_all() -> None:
    subprocess.run(["scancel", "--user=root"], check=False)
    wait_for(lambda: not _output("squeue", "-h"), 60, "the jobs' end")


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _restore(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
