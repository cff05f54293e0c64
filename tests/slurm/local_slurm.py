"""A real Slurm of two nodes with eight GPUs each that are not there, on this machine; needs root and Debian's packages.

Each slurmd has a host name of its own, or the nodes of a rendezvous would not find each other by name.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge")
NODES = {"node0": "127.0.0.2", "node1": "127.0.0.3"}
PORT = 17100
START_S, STOP_S, POLL_S = 20.0, 10.0, 0.2
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


def problem_with_this_machine() -> str | None:
    """Why no Slurm can run here, or None."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in ("slurmctld", "slurmd", "munged", "unshare") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} missing: apt-get install {' '.join(PACKAGES)}"
    return None


class LocalSlurm:
    """Daemons in a folder of their own; `environment` is what Slurm's commands need to find them."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        """Returns when both nodes take jobs."""
        self._write_files()
        self._run(
            "munged", f"--key-file={self._folder}/munge.key", f"--socket={self._folder}/munge.sock",
            f"--pid-file={self._folder}/munged.pid", f"--log-file={self._folder}/munged.log",
            f"--seed-file={self._folder}/munged.seed", "--num-threads=2", "--force",
        )  # fmt: skip
        self._run("slurmctld")
        for node in NODES:
            own_names = f"mount --bind {self._folder}/hosts /etc/hosts && hostname {node} && exec slurmd -N {node}"
            self._run("unshare", "--mount", "--uts", "sh", "-c", own_names)
        deadline_s = time.monotonic() + START_S
        while self._run("sinfo", "-h", "-N", "-o", "%T").split() != ["idle", "idle"]:
            assert time.monotonic() < deadline_s, f"the nodes do not come up:\n{self.logs()}"
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Ends the jobs, then the daemons that were started here."""
        self._run("scancel", "--full", "--signal=KILL", "--me", check=False)
        time.sleep(1)
        for path in (*self._folder.glob("slurmd.*.pid"), self._folder / "slurmctld.pid", self._folder / "munged.pid"):
            if path.is_file():
                _end(int(path.read_text()))

    def submit(self, *arguments: object, folder: Path) -> str:
        """`sbatch` with those arguments, from `folder`; returns the job's number."""
        return self._run("sbatch", "--parsable", *map(str, arguments), cwd=folder).strip()

    def command(self, *arguments: str) -> str:
        """Output of one of Slurm's commands."""
        return self._run(*arguments)

    def state(self, job: str) -> str:
        """What Slurm calls it."""
        return re.search(r"JobState=(\w+)", self._run("scontrol", "show", "job", job)).group(1)

    def wait(self, job: str, timeout_s: float) -> str:
        """Waits for the job's end; returns its state."""
        deadline_s = time.monotonic() + timeout_s
        while (state := self.state(job)) not in ENDED:
            assert time.monotonic() < deadline_s, f"job {job} is {state}\n{self.logs()}"
            time.sleep(POLL_S)
        return state

    def logs(self) -> str:
        """The ends of what the daemons say."""
        return "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in self._folder.glob("*.log"))

    def _write_files(self) -> None:
        for name in ("controller", *NODES):
            (self._folder / "state" / name).mkdir(parents=True)
        self._folder.chmod(0o755)
        key = self._folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        devices = [self._folder / f"gpu{number}" for number in range(8)]
        for device in devices:
            # /dev/null under another name: Slurm wants files, and gives them numbers.
            os.mknod(device, 0o20666, os.makedev(1, 3))
        lines = ["AutoDetect=off", f"NodeName=node[0-1] Name=gpu File={self._folder}/gpu[0-7]"]
        (self._folder / "gres.conf").write_text("\n".join(lines) + "\n")
        names = "".join(f"{address} {node}\n" for node, address in NODES.items())
        (self._folder / "hosts").write_text(Path("/etc/hosts").read_text() + names)
        template = Path(__file__).with_name("slurm.conf").read_text()
        values = {"host": socket.gethostname(), "folder": self._folder}
        ports = {"port": PORT, "port0": PORT + 1, "port1": PORT + 2}
        (self._folder / "slurm.conf").write_text(template.format(**values, **ports))

    def _run(self, *command: str, cwd: Path | None = None, check: bool = True) -> str:
        done = subprocess.run(command, env=self.environment, cwd=cwd, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}\n{self.logs()}"
        return done.stdout


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
        deadline_s = time.monotonic() + STOP_S
        while time.monotonic() < deadline_s:
            os.kill(pid, 0)
            time.sleep(POLL_S)
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
