"""The file that a launch script reads."""

import json
import subprocess
import sys
from pathlib import Path

from megatron_moe_grpo.training.run_status import EXIT_CODES, write_status


def test_write_status_keeps_the_first_word(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    write_status(file, "hung", None, "a reason\nof two lines")
    write_status(file, "failed", 3, "the other rank is gone")
    assert json.loads(file.read_text()) == {
        "state": "hung", "step": None, "has_saved": False, "reason": "a reason\nof two lines",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_write_status_remembers_that_something_was_saved(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    write_status(file, "running", 4)
    assert not json.loads(file.read_text())["has_saved"]
    write_status(file, "running", 6, has_saved=True)
    write_status(file, "crashed", None, "a bug")
    assert json.loads(file.read_text()) == {"state": "crashed", "step": 6, "has_saved": True, "reason": "a bug"}


def test_a_signal_before_the_first_step_stops_at_once(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    file.write_text("what an earlier run said")
    script = (
        "import os, signal, sys; from pathlib import Path;"
        "from megatron_moe_grpo.training.run_status import begin_status;"
        "begin_status(Path(sys.argv[1])); assert not Path(sys.argv[1]).exists();"
        "os.kill(os.getpid(), signal.SIGUSR1); sys.exit('goes on')"
    )
    finished = subprocess.run([sys.executable, "-c", script, file], check=False)
    assert finished.returncode == EXIT_CODES["stopped"]
    assert json.loads(file.read_text())["state"] == "stopped"


def test_write_status_needs_no_file() -> None:
    write_status(None, "finished", 1)


def test_exit_codes_tell_the_ends_apart() -> None:
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)
