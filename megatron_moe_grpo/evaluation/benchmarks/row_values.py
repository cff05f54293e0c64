"""Values of a benchmark's raw rows, taken only when they are what the benchmark says."""

import ast
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_moe_grpo.data.files.opened import raw_rows
from megatron_moe_grpo.data.row_place import RowPlace, shown
from megatron_moe_grpo.data.row_texts import as_texts
from megatron_moe_grpo.errors import DataError
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question

LETTERS = string.ascii_uppercase
RawRow = Mapping[str, Any]


def benchmark_rows(path: Path) -> Iterator[tuple[RawRow, RowPlace]]:
    """Rows of a file or a saved folder, without empty values.  Raises DataError: a bad row, or none at all."""
    num_rows = 0
    for number, read_raw in raw_rows(str(path)):
        num_rows += 1
        yield {name: value for name, value in read_raw().items() if value is not None}, RowPlace(str(path), number)
    if not num_rows:
        raise DataError(f"{path} has no rows", remedy="download it again")


def text(raw: RawRow, key: str, place: RowPlace) -> str:
    """`raw[key]` as text, without white space around it; whole numbers are text too.

    Raises DataError: absent, empty or of another type.
    """
    value = raw.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise place.problem(key, "no text", got=shown(value), expected=f"text in the column {key}")
    return as_texts([value], key, place)[0].strip()


def optional_text(raw: RawRow, key: str) -> str:
    """`raw[key]` where it is text and says something; parquet copies of TSV files say "nan" for nothing."""
    value = raw.get(key)
    return value.strip() if isinstance(value, str) and value.strip().lower() != "nan" else ""


def texts(raw: RawRow, key: str, place: RowPlace) -> list[str]:
    """A list of texts, or a cell that spells one as Python or JSON do; it is parsed, never run.

    Raises DataError: neither, or empty.
    """
    value = raw.get(key)
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise place.problem(key, "not a list", got=shown(value), expected="['first', 'second', ...]") from error
    if not isinstance(value, list) or not value:
        raise place.problem(key, "not a list of texts", got=shown(value))
    values = [str(item) if isinstance(item, int | float) and not isinstance(item, bool) else item for item in value]
    return [" ".join(item.split()) for item in as_texts(values, key, place)]


def lettered(options: Sequence[str], place: RowPlace) -> tuple[str, ...]:
    """Ready strings "A. first", "B. second", ...  Raises DataError: fewer than two, or more than letters."""
    if not 2 <= len(options) <= len(LETTERS):
        raise place.problem("options", f"not 2 to {len(LETTERS)} options", got=shown(list(options)))
    return tuple(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def option_columns(raw: RawRow, place: RowPlace) -> tuple[str, ...]:
    """Ready strings from the columns A, B, ...; empty cells at the end are no options.  Raises DataError: a gap."""
    present = [letter for letter in LETTERS if optional_text(raw, letter)]
    if "".join(present) != LETTERS[: len(present)]:
        raise place.problem("options", "an empty option between others", got=", ".join(present))
    return lettered([" ".join(text(raw, letter, place).split()) for letter in present], place)


def answer_letter(raw: RawRow, options: Sequence[str], place: RowPlace, key: str = "answer") -> str:
    """The letter in the column `answer`.  Raises DataError: none (a split without answers), or of no option."""
    if key not in raw:
        raise place.problem(
            key, "the row has no answer", remedy="splits without answers can only be sent to the benchmark's server"
        )
    letter = text(raw, key, place).rstrip(".")
    if letter not in list(LETTERS[: len(options)]):
        raise place.problem(key, "not the letter of an option", got=shown(raw[key]), expected=shown(list(options)))
    return letter


def letter_of_text(answer: str, options: Sequence[str], place: RowPlace) -> str:
    """The letter of the option that spells `answer`; the first of twins, as the benchmarks' own tools take it.

    Raises DataError: no option does.
    """
    plain = " ".join(answer.split())
    for option in options:
        if option[3:] == plain:
            return option[0]
    raise place.problem("answer", "none of the options", got=shown(answer), expected=shown(list(options)))


def refuse_twins(questions: Sequence[Question], path: Path) -> list[Question]:
    """The questions.  Raises DataError: an id stands twice."""
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise DataError(f"{path}: a question stands twice", got=question.id, expected="one row an id")
        seen.add(question.id)
    return list(questions)
