"""The folder of an evaluation: settings that must stay, answers as they come, and the result at the end.

settings.json        what was asked, and whom; another evaluation is refused the folder
answers.jsonl        one line an answered example, written as it comes; in file order once all are there
blank_answers.jsonl  the same with blank pictures
errors.jsonl         examples that got no answer the last time; they are asked again
result.json          scores; `is_complete` says whether every example has its answer

All of it is ASCII: a response may hold line breaks that some readers take for ends of lines, or half of a surrogate.
"""

import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_moe_grpo.data.whole_file import write_atomically
from megatron_moe_grpo.errors import EvaluationError
from megatron_moe_grpo.evaluation.run_files import read_json_lines

SETTINGS, RESULT, ERRORS = "settings.json", "result.json", "errors.jsonl"
ANSWERS, BLANK_ANSWERS = "answers.jsonl", "blank_answers.jsonl"


@dataclass(frozen=True)
class AnswerRecord:
    """One line of answers.jsonl."""

    id: str
    response: str
    is_correct: bool
    """As `strict` reads it."""
    is_correct_official: bool
    is_cut_off: bool
    prompt: str
    reference: str
    options: Sequence[str] = ()
    facets: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    question_digest: str = ""
    missing_file: str | None = None


@contextmanager
def opened_folder(folder: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Makes the folder this evaluation's own while the block runs.

    Raises:
        EvaluationError: it holds another evaluation, other files, or another process is at work in it.
    """
    file = folder / SETTINGS
    if folder.exists() and not file.is_file() and any(folder.iterdir()):
        raise EvaluationError(
            f"{folder} holds other files", expected="a new or an empty folder, or one of this evaluation"
        )
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(settings, indent=2) + "\n"
    with file.open("a+", encoding="utf-8") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise EvaluationError(f"another process writes to {folder}", remedy="wait for it") from error
        opened.seek(0)
        before = opened.read()
        if before:
            _refuse_another(folder, _parsed(before), json.loads(text))
        else:
            opened.write(text)
            opened.flush()
        yield


def read_settings(folder: Path) -> dict[str, Any]:
    """What was asked, and whom.  Raises EvaluationError: the folder holds no evaluation."""
    if not (folder / SETTINGS).is_file():
        raise EvaluationError(f"{folder} holds no evaluation", expected=f"{SETTINGS} and {ANSWERS} in it")
    return _parsed((folder / SETTINGS).read_text(encoding="utf-8"))


def read_answers(file: Path) -> dict[str, AnswerRecord]:
    """The whole lines by id.  Raises DataError: a damaged line."""
    return {line["id"]: AnswerRecord(**line) for line in read_json_lines(file)}


class AnswerFile:
    """Appends lines; one that a dead process left half written is cut off first."""

    def __init__(self, path: Path):
        content = path.read_bytes() if path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with path.open("r+b") as torn:
                torn.truncate(len(whole))
        self._file = path.open("a", encoding="utf-8", newline="\n")

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, record: AnswerRecord) -> None:
        """Writes the line through to the system, so that a killed process loses none."""
        self._file.write(json.dumps(asdict(record)) + "\n")
        self._file.flush()


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """The file whole or as it was before."""
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """The file whole or as it was before."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def _parsed(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise EvaluationError(f"{SETTINGS} is damaged", got=text[:80], remedy="evaluate into a new folder") from error
    if not isinstance(value, dict):
        raise EvaluationError(f"{SETTINGS} is damaged", got=text[:80], remedy="evaluate into a new folder")
    return value


def _refuse_another(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if keys:
        raise EvaluationError(
            f"{folder} holds another evaluation",
            got="; ".join(f"{key} {now.get(key)!r}" for key in keys),
            expected="; ".join(f"{key} {before.get(key)!r}" for key in keys),
            remedy="give every model and setting a folder of its own",
        )
