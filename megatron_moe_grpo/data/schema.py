"""One question with its pictures and videos, and the strict reading of it from a user's row.

Accepted rows (null counts as absent, unknown keys are ignored):
* OneThinker style: `problem`, `options`, `solution`, `problem_type`, and pictures and videos as in `row_visuals.py`;
* LLaVA style: `conversations` of one human and one gpt turn instead of problem and solution.
Options may also stand as lines "A. ..", "B. .." in the question; they are moved to `options`.  A row without options is
an open question if its `problem_type` says so, and one with options has several right ones if its type is `multiple
answers`; whether such an answer can be judged is `rewards/judge.py`'s business.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_moe_grpo.data.options import normalise_options, solution_letter, take_option_lines
from megatron_moe_grpo.data.row_place import RowPlace, shown
from megatron_moe_grpo.data.row_texts import answer_and_rationale, as_texts, open_answer, rationale_of, text_of
from megatron_moe_grpo.data.row_visuals import TAG, read_row_visuals
from megatron_moe_grpo.data.visuals import VisualFiles

MULTIPLE_CHOICE = "multiple choice"
"""Type of a row that names none."""
MULTIPLE_ANSWERS = "multiple answers"
"""Type of a row whose solution names every right option: "A, C"."""


@dataclass(frozen=True)
class Row:
    """A checked question."""

    id: str
    """Unique in its file; `line-N` where the row gave none."""
    problem: str
    """The question; holds one `<image>` or `<video>` tag a visual, in their order, or none (then the visuals come
    first)."""
    options: tuple[str, ...]
    """Ready strings "A. 3", "B. 4", ..., or none: an open answer."""
    solution: str
    """Letter of the right option, or letters (`multiple answers`); the answer itself where there are no options."""
    problem_type: str
    """Free text that metrics are grouped by and that picks the reward of an open answer."""
    visuals: tuple[VisualFiles, ...]
    """0 to 8 images and 0 to 8 videos in reading order; paths are resolved, in the image root or the image cache."""
    rationale: str | None = None
    """Reasoning that leads to the solution, without tags; supervised training may teach it."""


def parse_row(raw: Mapping[str, Any], line_number: int, source: str, image_root: Path) -> Row:
    """The checked row.  Visuals are located, not opened (`visuals.read_visual` does that); of pictures inside the row
    the header is read.

    Raises:
        DataError: names `source`, `line_number`, the row's id and the field.
    """
    row_id = read_row_id(raw, line_number, source)
    place = RowPlace(source, line_number, row_id)
    problem, answer = _question_and_answer(raw, place)
    problem_type = text_of(raw, "problem_type", place) if raw.get("problem_type") is not None else MULTIPLE_CHOICE
    problem, options = _options(raw, problem, problem_type, place)
    visuals = read_row_visuals(raw, problem, image_root, place)
    if not TAG.sub("", problem).strip():
        raise place.problem("problem", "the question is empty")
    solution, beside = answer_and_rationale(answer)
    has_one_letter = bool(options) and _plain(problem_type) != MULTIPLE_ANSWERS
    return Row(
        id=row_id,
        problem=problem,
        options=options,
        solution=solution_letter(solution, options, place) if has_one_letter else open_answer(solution, place),
        problem_type=problem_type,
        visuals=visuals,
        rationale=rationale_of(raw, beside, place),
    )


def read_row_id(raw: Mapping[str, Any], line_number: int, source: str) -> str:
    """`id` as text (whole numbers are common there); `line-N` where it is absent."""
    value = raw.get("id")
    if value is None:
        return f"line-{line_number}"
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        place = RowPlace(source, line_number)
        raise place.problem("id", "wrong type", got=shown(value), expected="text or a whole number")
    return str(value)


def _question_and_answer(raw: Mapping[str, Any], place: RowPlace) -> tuple[str, str]:
    if raw.get("conversations") is None:
        return text_of(raw, "problem", place), text_of(raw, "solution", place)
    for key in ("problem", "solution"):
        if raw.get(key) is not None:
            raise place.problem(key, "given beside conversations", remedy="keep one of the two")
    turns = raw["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise place.problem("conversations", "wrong type", got=shown(turns), expected="a list of turns")
    speakers = [turn.get("from") for turn in turns]
    if speakers != ["human", "gpt"]:
        raise place.problem(
            "conversations",
            "not one question with one answer",
            got=f"speakers {shown(speakers)}",
            expected='[{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]',
            remedy="make one row of every question",
        )
    return text_of(turns[0], "value", place), text_of(turns[1], "value", place)


def _options(raw: Mapping[str, Any], problem: str, problem_type: str, place: RowPlace) -> tuple[str, tuple[str, ...]]:
    """The question without its option lines, and the options; none if `problem_type` is that of an open answer."""
    given = raw.get("options")
    is_open = _plain(problem_type) not in (MULTIPLE_CHOICE, MULTIPLE_ANSWERS)
    if given is None:
        problem, given = take_option_lines(problem)
        if not given and not is_open:
            raise place.problem(
                "options",
                "the row has no options",
                expected=f"a list of texts, or a problem_type other than {MULTIPLE_CHOICE!r}",
                remedy='add "options", or write them as lines "A. ..", "B. .." in the question; an open question '
                'needs its own "problem_type"',
            )
    options = as_texts(given, "options", place)
    if not options and is_open:
        return problem, ()
    return problem, normalise_options(options, place)


def _plain(problem_type: str) -> str:
    """Case and underscores do not matter."""
    return " ".join(problem_type.casefold().replace("_", " ").split())
