"""How a run ended, for the script that started it: torchrun makes 1 of every exit code but 0."""

import json
import os
import signal
from pathlib import Path
from types import FrameType
from typing import Literal

State = Literal["finished", "stopped", "hung", "failed"]

# `stopped` is EX_TEMPFAIL of sysexits.h: try again later.  `hung` is EX_SOFTWARE.  A failed run exits with 2 for what
# its user can put right, with 1 for everything else.
EXIT_CODES = {"finished": 0, "stopped": 75, "hung": 70}
# TERM, INT, and Slurm's USR1 before a time limit.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def write_status(file: Path | None, state: State, step: int | None, reason: str = "") -> None:
    """One line of JSON, whole or not there.  `stopped` and `hung` mean: start me again, I go on where I was.

    The first word stays: when one rank fails or hangs, the others fail because of it and know less.

    Args:
        file: None: nobody asked.
        step: steps done; None where that is not known.
    """
    if file is None or file.exists():
        return
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps({"state": state, "step": step, "reason": reason}) + "\n", encoding="utf-8")
    os.replace(temporary, file)


def begin_status(file: Path | None) -> None:
    """Forgets what an earlier run said.  Until training handles signals itself, one of them ends the process at once:
    while a run starts there is nothing to save.
    """
    is_main = os.environ.get("RANK", "0") == "0"
    if file is not None and is_main:
        file.unlink(missing_ok=True)

    def end(number: int, frame: FrameType | None) -> None:
        write_status(file, "stopped", None, f"{signal.Signals(number).name} before the first step")
        os._exit(EXIT_CODES["stopped"])

    for number in STOP_SIGNALS:
        signal.signal(number, end)
