"""How a run ended, for the script that started it: torchrun makes 1 of every exit code but 0."""

import json
import os
import signal
from pathlib import Path
from types import FrameType
from typing import Literal

State = Literal["running", "finished", "stopped", "hung", "failed", "crashed"]

# `stopped` is EX_TEMPFAIL of sysexits.h: try again later.  `hung` is EX_SOFTWARE.  `failed` ends with 2: its user can
# put it right; `crashed` with 1: everything else.  `running` stays where nobody lived to say more.
EXIT_CODES = {"finished": 0, "stopped": 75, "hung": 70}
# TERM, INT, and Slurm's USR1 before a time limit.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def write_status(
    file: Path | None, state: State, step: int | None, reason: str = "", *, has_saved: bool = False
) -> None:
    """One line of JSON, whole or not there.

    The first word about the end stays: when one rank fails or hangs, the others fail because of it and know less.

    Args:
        file: None: nobody asked.
        step: steps done, for `running` those that are saved.  None where that is not known: then the word before is
            kept, and one that says null never began.
        has_saved: this start of the run has saved a checkpoint.  Once said it stays: whoever starts the run again knows
            that it comes further each time.
    """
    if file is None:
        return
    before = {"state": "running", "step": None, "has_saved": False}
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
    if before["state"] != "running":
        return
    said = {
        "state": state,
        "step": before["step"] if step is None else step,
        "has_saved": has_saved or before["has_saved"],
        "reason": reason,
    }
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(said) + "\n", encoding="utf-8")
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
