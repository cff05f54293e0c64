import pytest

from megatron_moe_grpo.data.options import normalise_options, solution_letter, take_option_lines
from megatron_moe_grpo.data.row_place import RowPlace
from megatron_moe_grpo.errors import DataError

PLACE = RowPlace("rows.jsonl", 3, "cat")
OPTIONS = ("A. 3", "B. 4", "C. 5", "D. 6")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["A. 3", "B. 4"], ("A. 3", "B. 4")),
        (["3", "4"], ("A. 3", "B. 4")),
        (["(A) 3", "(B) 4"], ("A. 3", "B. 4")),
        (["A) 3", "B: 4"], ("A. 3", "B. 4")),
        ([" a  red\tcar ", "two"], ("A. a red car", "B. two")),
        (["B", "A"], ("A. B", "B. A")),  # parts of a picture
        (["A. Lincoln", "Washington"], ("A. A. Lincoln", "B. Washington")),
        ([".5", "-1"], ("A. .5", "B. -1")),
    ],
)
def test_normalise_options_letters_them_in_order(options: list[str], expected: tuple[str, ...]) -> None:
    assert normalise_options(options, PLACE) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "not 2 to 26 options"),
        (["3"], "not 2 to 26 options"),
        ([str(number) for number in range(27)], "not 2 to 26 options"),
        (["B. 3", "A. 4"], "not A, B, C"),
        (["A. 3", "C. 4"], "not A, B, C"),
        (["3", " "], "option B is empty"),
        (["A. 3", "B. "], "option B is empty"),
        (["3", "4", " 3"], "options A and C are the same"),
        (["A. 3", "B. 3"], "options A and B are the same"),
        (["3", "<image>"], "image or video tag"),
        (["3", "the clip <video>"], "image or video tag"),
    ],
)
def test_normalise_options_refuses_what_cannot_be_asked(options: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        normalise_options(options, PLACE)
    assert "rows.jsonl:3 (id 'cat'), field 'options'" in str(caught.value)


@pytest.mark.parametrize(
    "solution",
    [
        "B",
        "B.",
        "(B)",
        "B)",
        " B\n",
        "4",
        "B. 4",
        "(B) 4",
        "<answer>B</answer>",
        "<answer> (B) </answer>",
        "<answer>4</answer>",
        "<answer>B. 4</answer>",
    ],
)
def test_solution_letter_reads_letter_and_text(solution: str) -> None:
    assert solution_letter(solution, OPTIONS, PLACE) == "B"


@pytest.mark.parametrize(
    ("solution", "options", "message"),
    [
        ("E", OPTIONS, "there is no option E"),
        ("<answer>E</answer>", OPTIONS, "there is no option E"),
        ("b", OPTIONS, "none of the options"),
        ("7", OPTIONS, "none of the options"),
        ("B. 5", OPTIONS, "none of the options"),  # letter and text disagree
        ("A or B", OPTIONS, "none of the options"),
        ("<answer>A</answer><answer>B</answer>", OPTIONS, "none of the options"),
        ("<answer>B", OPTIONS, "none of the options"),
        ("<answer></answer>", OPTIONS, "none of the options"),
        ("B", ("A. B", "B. A"), "read as A or B"),
    ],
)
def test_solution_letter_refuses_what_disagrees(solution: str, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        solution_letter(solution, options, PLACE)
    assert "field 'solution'" in str(caught.value)


def test_take_option_lines_moves_one_run_and_leaves_the_rest() -> None:
    problem = "Which one?\nA. cat\n(B) dog\nAnswer with the letter."
    assert take_option_lines(problem) == ("Which one?\nAnswer with the letter.", ["A. cat", "(B) dog"])


@pytest.mark.parametrize(
    "problem",
    [
        "Which one?",
        "Which one?\nA. cat",
        "Which one?\nB. cat\nC. dog",
        "A: How are you?\nB: Well.\nWhat does B say?\nA. yes\nB. no",  # two runs: which are the options?
    ],
)
def test_take_option_lines_leaves_an_unclear_question_alone(problem: str) -> None:
    assert take_option_lines(problem) == (problem, [])
