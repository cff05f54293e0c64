"""Options and solution of a multiple-choice row, in one normal form.

Options become "A. text", "B. text", ... in order, however they were lettered; the solution becomes the bare letter.
Anything that could be read in two ways is refused: a wrong label trains the wrong thing without a sign.
"""

import re
import string
from collections.abc import Sequence

from megatron_moe_grpo.data.row_place import RowPlace, shown
from megatron_moe_grpo.data.row_texts import ANSWER_TAG

MAX_OPTIONS = len(string.ascii_uppercase)
IMAGE_TAG = "<image>"
VIDEO_TAG = "<video>"

# "A. text", "A) text", "(A) text", "A: text"; a letter alone is a bare option ("A" may name a part of the picture).
LETTERED = re.compile(r"\(?([A-Z])[.):]\s*(.*)", re.DOTALL)
LETTER_ALONE = re.compile(r"\(?([A-Z])\)?[.:]?")


def normalise_options(options: Sequence[str], place: RowPlace) -> tuple[str, ...]:
    """Options as ("A. text", "B. text", ...), white space collapsed.

    All lettered: letters are checked and rewritten.  None or only some lettered ("A. Lincoln" beside "Washington"):
    all are taken as bare text.  Raises DataError: fewer than 2 or more than 26, wrong letters, empty, duplicates,
    image or video tags.
    """
    if not 2 <= len(options) <= MAX_OPTIONS:
        raise place.problem("options", f"not 2 to {MAX_OPTIONS} options", got=f"{len(options)}: {shown(list(options))}")
    matches = [LETTERED.fullmatch(option.strip()) for option in options]
    texts = [" ".join(option.split()) for option in options]
    if all(matches):
        letters = "".join(match[1] for match in matches if match)
        if letters != string.ascii_uppercase[: len(options)]:
            raise place.problem(
                "options",
                "the letters of the options are not A, B, C, ... in order",
                got=shown(list(options)),
                remedy="reorder them, or remove the letters and they are added in the order given",
            )
        texts = [" ".join(match[2].split()) for match in matches if match]
    _refuse_unusable_texts(texts, place)
    return tuple(f"{letter}. {text}" for letter, text in zip(string.ascii_uppercase, texts, strict=False))


def _refuse_unusable_texts(texts: list[str], place: RowPlace) -> None:
    for index, text in enumerate(texts):
        letter = string.ascii_uppercase[index]
        if not text:
            raise place.problem("options", f"option {letter} is empty", got=shown(texts))
        if IMAGE_TAG in text or VIDEO_TAG in text:
            raise place.problem(
                "options",
                f"option {letter} holds an image or video tag",
                got=shown(text),
                remedy="put the pictures and videos into the problem and name them in the options",
            )
        if text in texts[:index]:
            twin = string.ascii_uppercase[texts.index(text)]
            raise place.problem(
                "options",
                f"options {twin} and {letter} are the same",
                got=shown(texts),
                remedy="make them differ, or drop one",
            )


def take_option_lines(problem: str) -> tuple[str, list[str]]:
    """Splits a question that carries its options as lines "A. ..", "B. .." into (question without them, the lines).

    Only a run of lines lettered A, B, ... without a gap counts.  Without one, or with two (a dialogue of A and B before
    the options), the list is empty and the question unchanged.
    """
    lines = problem.split("\n")
    runs = [(start, end) for start in range(len(lines)) if (end := _end_of_run(lines, start)) >= start + 2]
    if len(runs) != 1:
        return problem, []
    start, end = runs[0]
    return "\n".join(lines[:start] + lines[end:]).strip(), lines[start:end]


def _end_of_run(lines: list[str], start: int) -> int:
    """Index after the lines lettered A, B, ... that begin at `start`."""
    for offset, letter in enumerate(string.ascii_uppercase):
        line = lines[start + offset].strip() if start + offset < len(lines) else ""
        match = LETTERED.fullmatch(line)
        if match is None or match[1] != letter:
            return start + offset
    return start + MAX_OPTIONS


def solution_letter(solution: str, options: tuple[str, ...], place: RowPlace) -> str:
    """The letter of the right option.

    Reads "B", "B.", "(B)", "B. text", "text", each also inside one <answer> tag.  Raises DataError when the letter has
    no option, the text is none of them, letter and text disagree, or it can be read as two different options.
    """
    tagged = ANSWER_TAG.fullmatch(solution.strip())
    text = " ".join((tagged[1] if tagged else solution).split())
    readings = _readings(text, options)
    if len(readings) == 1:
        return readings.pop()
    if readings:
        raise place.problem(
            "solution",
            f"it can be read as {' or '.join(sorted(readings))}",
            got=shown(solution),
            expected=shown(list(options)),
            remedy="write the letter and the text: 'B. text'",
        )
    match = LETTER_ALONE.fullmatch(text)
    what = f"there is no option {match[1]}" if match else "the solution is none of the options"
    raise place.problem(
        "solution",
        what,
        got=shown(solution),
        expected=shown(list(options)),
        remedy="write the capital letter of the right option, or its exact text",
    )


def _readings(text: str, options: tuple[str, ...]) -> set[str]:
    """Letters of all options that `text` could mean."""
    readings = {option[0] for option in options if option[3:] == text}
    match = LETTER_ALONE.fullmatch(text)
    if match and ord(match[1]) - ord("A") < len(options):
        readings.add(match[1])
    lettered = LETTERED.fullmatch(text)
    if lettered and f"{lettered[1]}. {lettered[2]}" in options:
        readings.add(lettered[1])
    return readings
