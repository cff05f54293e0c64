"""One multiple-choice question with its pictures, and the strict reading of it from a user's row.

Accepted rows (null counts as absent, unknown keys are ignored):
* OneThinker style: `problem`, `options`, `solution`, `problem_type`, and `image` (a path) or `images` (a list);
* LLaVA style: `conversations` of one human and one gpt turn instead of problem and solution.
Options may also stand as lines "A. ..", "B. .." in the question; they are moved to `options`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_moe_grpo.data.image_paths import resolve_image_path
from megatron_moe_grpo.data.options import IMAGE_TAG, normalise_options, solution_letter, take_option_lines
from megatron_moe_grpo.data.row_place import RowPlace, shown

MAX_IMAGES = 8


@dataclass(frozen=True)
class Row:
    """A checked question."""

    id: str
    """Unique in its file; `line-N` where the row gave none."""
    problem: str
    """The question; holds one `<image>` tag an image, or none (then the images come first)."""
    options: tuple[str, ...]
    """Ready strings "A. 3", "B. 4", ..."""
    solution: str
    """Letter of the right option."""
    problem_type: str
    """Free text that metrics are grouped by."""
    image_paths: tuple[Path, ...]
    """0 to 8 files, resolved, inside the image root."""


def parse_row(raw: Mapping[str, Any], line_number: int, source: str, image_root: Path) -> Row:
    """The checked row.  Pictures are located, not opened (`images.check_image` does that).

    Raises:
        DataError: names `source`, `line_number`, the row's id and the field.
    """
    row_id = read_row_id(raw, line_number, source)
    place = RowPlace(source, line_number, row_id)
    problem, solution = _question_and_solution(raw, place)
    problem, options = _options(raw, problem, place)
    image_paths = tuple(resolve_image_path(text, image_root, place) for text in _image_texts(raw, place))
    num_tags = problem.count(IMAGE_TAG)
    if num_tags not in (0, len(image_paths)):
        raise place.problem(
            "problem",
            "the number of <image> tags is not the number of images",
            got=f"{num_tags} tags, {len(image_paths)} images",
            remedy="write one <image> for every image, or none at all",
        )
    if not problem.replace(IMAGE_TAG, "").strip():
        raise place.problem("problem", "the question is empty")
    return Row(
        id=row_id,
        problem=problem,
        options=options,
        solution=solution_letter(solution, options, place),
        problem_type=_text(raw, "problem_type", place) if raw.get("problem_type") is not None else "multiple choice",
        image_paths=image_paths,
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


def _question_and_solution(raw: Mapping[str, Any], place: RowPlace) -> tuple[str, str]:
    if raw.get("conversations") is None:
        return _text(raw, "problem", place), _text(raw, "solution", place)
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
    return _text(turns[0], "value", place), _text(turns[1], "value", place)


def _options(raw: Mapping[str, Any], problem: str, place: RowPlace) -> tuple[str, tuple[str, ...]]:
    """The question without its option lines, and the options."""
    options = raw.get("options")
    if options is None:
        problem, options = take_option_lines(problem)
        if not options:
            raise place.problem(
                "options",
                "the row has no options",
                expected="a list of texts",
                remedy='add "options", or write them as lines "A. ..", "B. .." in the question',
            )
    return problem, normalise_options(_texts(options, "options", place), place)


def _image_texts(raw: Mapping[str, Any], place: RowPlace) -> list[str]:
    for key in ("video", "videos"):
        if raw.get(key):
            raise place.problem(
                key,
                "videos are not read",
                got=shown(raw[key]),
                remedy="store up to 8 frames as pictures and list them in images",
            )
    given = [key for key in ("image", "images") if raw.get(key) is not None]
    if len(given) == 2:
        raise place.problem("images", "given beside image", remedy="keep one of the two")
    if not given:
        return []
    value = raw[given[0]]
    paths = _texts([value] if isinstance(value, str) else value, given[0], place)
    if len(paths) > MAX_IMAGES:
        raise place.problem(given[0], "too many images", got=len(paths), expected=f"at most {MAX_IMAGES}")
    return paths


def _text(raw: Mapping[str, Any], key: str, place: RowPlace) -> str:
    value = raw.get(key)
    if value is None:
        near = ' (a key named "answer" is not read)' if key == "solution" and "answer" in raw else ""
        raise place.problem(key, f"the row has no {key}", remedy=f"add it, or drop the row{near}")
    _refuse_unless_text(value, key, place)
    if not value.strip():
        raise place.problem(key, "empty")
    return value.strip()


def _texts(value: object, key: str, place: RowPlace) -> list[str]:
    if not isinstance(value, list):
        raise place.problem(key, "wrong type", got=shown(value), expected="a list of texts")
    for item in value:
        _refuse_unless_text(item, key, place)
    return value


def _refuse_unless_text(value: object, key: str, place: RowPlace) -> None:
    if not isinstance(value, str):
        raise place.problem(
            key, "wrong type", got=f"{type(value).__name__} {shown(value)}", expected="text", remedy="put it in quotes"
        )
    # json reads "\ud800"; no tokenizer and no file can take it.
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise place.problem(key, "half of a surrogate pair", got=shown(value), expected="text that UTF-8 can write")
