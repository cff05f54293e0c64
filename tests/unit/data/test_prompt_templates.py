import pytest

from megatron_moe_grpo.data.prompt_templates import (
    TEMPLATES,
    answer_template,
    answer_text,
    prompt_template,
    question_text,
)
from megatron_moe_grpo.data.schema import Row
from megatron_moe_grpo.errors import ConfigError, DataError

CHOICE = Row("cat", "<image>\nHow many?", ("A. 3", "B. 4"), "B", "multiple choice", (), "2+2")
OPEN = Row("dog", "What is the area?", (), "3*pi", "geometry", ())


def test_prompt_template_knows_names_and_texts() -> None:
    assert prompt_template("plain") == "{question}"
    assert prompt_template("Q: {question}\n\\boxed{}") == "Q: {question}\n\\boxed{}"
    for name, text in TEMPLATES.items():
        assert prompt_template(name) == text
        assert text.count("{question}") == 1


def test_r1v_templates_are_those_of_its_code() -> None:
    # QUESTION_TEMPLATE of src/r1-v/src/open_r1/grpo.py, its two spaces included.
    for name in ("r1v_number", "r1v_geometry"):
        assert question_text(TEMPLATES[name], OPEN) == (
            "What is the area?  Output the thinking process in <think> </think> and final answer (number) in <answer> "
            "</answer> tags."
        )


@pytest.mark.parametrize("text", ["", "r1v", "Question", "{question} {question}", "{Question}", "{ question }"])
def test_prompt_template_refuses_what_does_not_hold_one_question(text: str) -> None:
    with pytest.raises(ConfigError, match="data.prompt_template") as caught:
        prompt_template(text)
    assert "plain, r1v_number" in str(caught.value)


@pytest.mark.parametrize("tag", ["<image>", "<video>"])
def test_prompt_template_refuses_tags(tag: str) -> None:
    with pytest.raises(ConfigError, match="image or video tag"):
        prompt_template(f"{tag} {{question}}")


def test_question_text_puts_question_and_options_in_the_place() -> None:
    assert question_text("{question}", CHOICE) == "<image>\nHow many?\nA. 3\nB. 4"
    assert question_text("Look. {question}\nAnswer!", CHOICE) == "Look. <image>\nHow many?\nA. 3\nB. 4\nAnswer!"
    odd = Row("odd", "What is {question} in {solution}?", (), "x", "open-ended", ())
    assert question_text("Q: {question}", odd) == "Q: What is {question} in {solution}?"


@pytest.mark.parametrize("text", ["", "yes", "{rationale}", "{answer}", "{question}", "solution"])
def test_answer_template_refuses_what_says_nothing_of_the_answer(text: str) -> None:
    with pytest.raises(ConfigError, match="data.answer_template"):
        answer_template(text)


@pytest.mark.parametrize(
    ("template", "row", "expected"),
    [
        ("{solution}", CHOICE, "B"),
        ("{solution}", OPEN, "3*pi"),
        ("{option}", CHOICE, "B. 4"),
        ("<think>{rationale}</think><answer>{solution}</answer>", CHOICE, "<think>2+2</think><answer>B</answer>"),
        ("\\boxed{{solution}}", OPEN, "\\boxed{3*pi}"),
        ("{rationale}: {solution}", Row("x", "?", (), "4", "math", (), "not {solution}"), "not {solution}: 4"),
    ],
)
def test_answer_text_fills_the_parts_in(template: str, row: Row, expected: str) -> None:
    assert answer_text(answer_template(template), row) == expected


@pytest.mark.parametrize(("template", "missing"), [("{option}", "option"), ("{rationale} {solution}", "rationale")])
def test_answer_text_names_the_part_that_the_row_lacks(template: str, missing: str) -> None:
    with pytest.raises(DataError, match=f"the row has no {missing}, which data.answer_template asks for"):
        answer_text(template, OPEN)
