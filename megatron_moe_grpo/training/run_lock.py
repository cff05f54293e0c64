"""One trainer at a time in a run folder."""

import errno
import fcntl
import os
import socket
import time
from pathlib import Path

from megatron_moe_grpo.errors import ConfigError

NAME = "run.lock"
WAIT_S, POLL_S = 10.0, 0.1
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


def lock_run(root: Path, wait_s: float = WAIT_S) -> None:
    """Keeps other trainers out of the folder `root` until this process ends, however it ends; on the main rank.

    The kernel holds the lock, so a dead trainer leaves none.  It is a POSIX lock and no flock: a process that was
    forked from a trainer does not have it, so an orphan cannot keep the next trainer out.  NFS 4 gives the lock of a
    host that vanished free after its lease (90 s, mostly), NFS 3 when the host is back.

    Args:
        wait_s: a trainer that was just killed may take a moment to go.
    Raises:
        ConfigError: another trainer holds it; says which.
    """
    path = root / NAME
    # Never closed: closing any handle of the file would give the lock free.
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    deadline_s = time.monotonic() + wait_s
    while not _is_locked(handle, path):
        if time.monotonic() > deadline_s:
            raise ConfigError(
                f"another trainer works in {root}",
                got=os.pread(handle, 500, 0).decode("utf-8", errors="replace").strip(),
                remedy=f"wait for it, or choose another name; if its host is down for good, remove {path}",
            )
        time.sleep(POLL_S)
    os.truncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def _is_locked(handle: int, path: Path) -> bool:
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"the file system of {path} has no locks: nothing keeps a second trainer out")
    return True
