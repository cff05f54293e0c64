"""How a question is put to a model, whatever runs the model, and what comes back."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from megatron_moe_grpo.data.prompt_templates import QUESTION
from megatron_moe_grpo.data.visuals import Visual, VisualFiles, blanked, read_visual
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question
from megatron_moe_grpo.models.chat_processing import VISUAL_TAG


@dataclass(frozen=True)
class AskSettings:
    """What every kind of model is asked with."""

    max_new_tokens: int
    video_frames: int
    """Frames of a video that are shown, at most."""
    template: str = QUESTION
    """Stands around the benchmark's own prompt; holds `{question}` once (`prompt_templates.py`)."""


@dataclass(frozen=True)
class Answer:
    """One response."""

    question_id: str
    response: str
    is_cut_off: bool
    """The response reached `max_new_tokens` and has no end."""


@dataclass(frozen=True)
class Failure:
    """A question that got no response.  It is no wrong answer."""

    question_id: str
    reason: str


class Answerer(Protocol):
    """A model that can be asked."""

    identity: Mapping[str, object]
    """What names this model and its weights: an evaluation goes on only with an equal one."""

    def answers(self, questions: Sequence[Question], blank_images: bool) -> Iterator[Answer | Failure]:
        """One answer or failure a question, in any order, as they come; a model that is gone may leave the rest out.

        Args:
            blank_images: every picture and frame is mid-grey, of its own size.
        """
        ...


def prompt_parts(question: Question, template: str) -> list[str | VisualFiles]:
    """Texts and visuals in the order in which the model sees them.

    Visuals stand where their tags are.  Where the tags are not one for each visual, they are words of the benchmark's
    own text: the visuals come first and the text stays as it is.
    """
    text = template.replace(QUESTION, question.prompt)
    plain, *tagged = VISUAL_TAG.split(text)
    tags, texts = tagged[::2], tagged[1::2]
    if tags != ["video" if files.is_video else "image" for files in question.visuals]:
        return [*question.visuals, text]
    parts: list[str | VisualFiles] = [plain]
    for files, following in zip(question.visuals, texts, strict=True):
        parts += [files, following]
    return [part for part in parts if part != ""]


def seen(files: VisualFiles, settings: AskSettings, blank_images: bool) -> Visual:
    """The decoded visual, blank for the control.  Raises DataError: see `read_visual`."""
    visual = read_visual(files, settings.video_frames)
    return blanked(visual) if blank_images else visual
