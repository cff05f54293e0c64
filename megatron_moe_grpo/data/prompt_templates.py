"""What stands around a question in its prompt, and what supervised training teaches as its answer.

Question and option lines go in the place of `{question}`; pictures stay where their tags are in the question, or come
first.  A template is plain text: other braces (LaTeX) are left alone, nothing in it is run.
"""

import re

from megatron_moe_grpo.data.options import IMAGE_TAG, VIDEO_TAG
from megatron_moe_grpo.data.schema import Row
from megatron_moe_grpo.errors import ConfigError, DataError

QUESTION = "{question}"

# R1-V, src/r1-v/src/open_r1/grpo.py, QUESTION_TEMPLATE, both spaces included.  Its counting (CLEVR) and its geometry
# (GeoQA) are asked alike; OThink-MR1 follows R1-V's settings and prints no prompt of its own.
R1V = (
    "{question}  Output the thinking process in <think> </think> and final answer (number) in <answer> </answer> tags."
)

TEMPLATES = {
    "plain": QUESTION,
    "r1v_number": R1V,
    "r1v_geometry": R1V,
    # R1-V asks no multiple choice; this is its sentence as TinyLLaVA-Video-R1 asks for an option.
    "r1v_choice": "{question}\nOutput the thinking process in <think> </think> and final answer (option) in <answer> "
    "</answer> tags.",
    # LLaVA-1.5's for multiple choice, and lmms-eval's since.  MoE-GRPO prints no prompt.
    "direct_letter": "{question}\nAnswer with the option's letter from the given choices directly.",
}

PART = re.compile(r"\{(solution|rationale|option)\}")


def prompt_template(name_or_text: str) -> str:
    """The template of that name, or the text itself if it holds `{question}`.

    Raises:
        ConfigError: neither a name nor a text with `{question}` once; an image or video tag in it.
    """
    text = TEMPLATES.get(name_or_text, name_or_text)
    if text.count(QUESTION) != 1:
        raise ConfigError(
            "data.prompt_template is neither a known template nor a text that holds {question} once",
            got=repr(name_or_text),
            expected=f"one of {', '.join(TEMPLATES)}, or a text with {QUESTION} once",
        )
    if IMAGE_TAG in text or VIDEO_TAG in text:
        raise ConfigError(
            "data.prompt_template holds an image or video tag, which would count as one more picture of every row",
            got=repr(text),
            remedy=f"leave it out: pictures stand where their tags are in {QUESTION}, or before it",
        )
    return text


def answer_template(text: str) -> str:
    """The text itself.  Raises ConfigError: it holds neither `{solution}` nor `{option}`, so every answer is alike."""
    if not {"solution", "option"} & set(PART.findall(text)):
        raise ConfigError(
            "data.answer_template says nothing of the right answer",
            got=repr(text),
            expected="a text with {solution} or {option}, and {rationale} where rows have one",
        )
    return text


def question_text(template: str, row: Row) -> str:
    """The prompt's text: question and option lines, one a line, in their place in `template` (`prompt_template`)."""
    return template.replace(QUESTION, "\n".join((row.problem, *row.options)))


def answer_text(template: str, row: Row) -> str:
    """What supervised training teaches: `template` (`answer_template`) with the row's own parts.

    `{solution}` is the letter or the open answer, `{option}` the whole line of the right option ("B. 4"), `{rationale}`
    the row's reasoning.
    Raises DataError: the row has no part of that name.
    """
    parts = {"solution": row.solution, "rationale": row.rationale, "option": right_option(row)}
    for name in PART.findall(template):
        if parts[name] is None:
            raise DataError(
                f"the row has no {name}, which data.answer_template asks for",
                got=repr(template),
                remedy=f"add it to the row, drop the row, or leave {{{name}}} out of data.answer_template",
            )
    # In one pass: a rationale that speaks of "{solution}" stays as it is.
    return PART.sub(lambda part: parts[part[1]] or "", template)


def right_option(row: Row) -> str | None:
    """The line of the right option; None for an open answer."""
    return next((option for option in row.options if option[0] == row.solution), None)
