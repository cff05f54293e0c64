"""MME: 14 subtasks of questions with yes or no, two for every picture.

Files: VLMEvalKit's MME.tsv; the parquet files of lmms-lab/MME; or the folder of the authors' release, one folder a
subtask, with `NAME.txt` (question, tab, answer; two lines) beside `NAME.jpg`, or in questions_answers_YN/ and images/.
"""

import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from megatron_moe_grpo.data.images import is_picture
from megatron_moe_grpo.data.row_place import RowPlace, shown
from megatron_moe_grpo.data.visuals import VisualFiles
from megatron_moe_grpo.errors import DataError
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question, Score
from megatron_moe_grpo.evaluation.benchmarks.row_pictures import pictures
from megatron_moe_grpo.evaluation.benchmarks.row_values import benchmark_rows, optional_text, refuse_twins, text
from megatron_moe_grpo.evaluation.benchmarks.scores import share, split_by
from megatron_moe_grpo.rewards.answer_format import Extraction, answer_of

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
QUESTIONS_OF_A_PICTURE = 2
PREFIX_CHARS = 4


class MME:
    """A subtask's points are its accuracy and its accuracy+ (both questions of a picture right), in percent, added."""

    name = "mme"
    max_new_tokens = 16
    counts_groups = False

    def load(self, path: Path, image_root: Path | None) -> list[Question]:
        """Raises DataError: also a picture without exactly two questions, a subtask too many or too few."""
        is_release = path.is_dir() and not (path / "state.json").is_file() and not any(path.glob("*.parquet"))
        if is_release:
            questions = list(_release_questions(path))
        else:
            questions = list(_table_questions(path, image_root or path.parent))
        _refuse_missing_subtasks(path, questions)
        for group, pair in split_by(lambda question: question.group, questions).items():
            if len(pair) != QUESTIONS_OF_A_PICTURE:
                raise DataError(
                    f"{path}: a picture of MME has two questions",
                    got=f"{len(pair)} for {group}",
                    remedy="download again",
                )
        return refuse_twins(questions, path)

    def is_correct(self, question: Question, response: str, extraction: Extraction) -> bool:
        """Yes or no, read as `said_yes_or_no` does."""
        return said_yes_or_no(response, extraction) == question.reference

    def score(self, questions: Sequence[Question], is_correct: Mapping[str, bool]) -> list[Score]:
        """`overall` (points, of 2,800), perception (of 2,000), cognition (of 800), then each subtask's parts."""
        by_subtask = split_by(lambda question: question.facets["category"], questions)
        points, parts = {}, []
        for name, part in by_subtask.items():
            pairs = split_by(lambda question: question.group, part).values()
            accuracy = share(f"accuracy.{name}", [is_correct[question.id] for question in part])
            plus = share(f"accuracy_plus.{name}", [all(is_correct[question.id] for question in pair) for pair in pairs])
            points[name] = Score(f"points.{name}", 100 * (accuracy.value + plus.value), len(part))
            parts += [points[name], accuracy, plus]
        kinds = (("perception", PERCEPTION), ("cognition", COGNITION))
        sums = [_sum(kind, [points[name] for name in names]) for kind, names in kinds]
        return [_sum("overall", list(points.values())), *sums, *parts]


def said_yes_or_no(response: str, extraction: Extraction) -> str | None:
    """ "yes", "no", or None.

    `strict`: the answer is that word and nothing else but a full stop.  `official`: as the authors' eval_tool does, its
    first four letters without full stops hold "yes", or else "no" ("None" is a no), and "y" or "n" alone count.
    """
    answer = answer_of(response, extraction)
    if answer is None:
        return None
    plain = answer.lower().strip()
    if extraction == "strict":
        plain = plain.removesuffix(".")
        return plain if plain in ("yes", "no") else None
    plain = plain.replace(".", "")
    if plain in ("y", "n"):
        return {"y": "yes", "n": "no"}[plain]
    start = plain[:PREFIX_CHARS]
    return next((word for word in ("yes", "no") if word in start), None)


def _sum(name: str, scores: Sequence[Score]) -> Score:
    return Score(name, sum(score.value for score in scores), sum(score.num_examples for score in scores))


def _refuse_missing_subtasks(path: Path, questions: Sequence[Question]) -> None:
    found = {question.facets["category"] for question in questions}
    missing = [subtask for subtask in PERCEPTION + COGNITION if subtask not in found]
    if missing:
        raise DataError(
            f"{path} does not hold all subtasks of MME",
            got=f"{len(missing)} missing: {', '.join(missing)}",
            remedy="download the rest: the score is a sum over all subtasks",
        )


def _table_questions(path: Path, image_root: Path) -> Iterator[Question]:
    for raw, place in benchmark_rows(path):
        # VLMEvalKit's table names the picture; lmms-lab's gives both questions of a picture one id.
        group = optional_text(raw, "question_id") or text(raw, "image_path", place)
        category = text(raw, "category", place)
        question = text(raw, "question", place)
        yield Question(
            id=text(raw, "index", place) if "index" in raw else f"{group} {question}",
            prompt=question,
            visuals=pictures(raw, image_root, place),
            reference=_reference(text(raw, "answer", place), place),
            facets={"category": _known(category, place)},
            group=f"{category}/{group}",
        )


def _release_questions(folder: Path) -> Iterator[Question]:
    for subtask in sorted(entry for entry in folder.iterdir() if entry.name in PERCEPTION + COGNITION):
        beside = (subtask / "images").is_dir()
        texts = subtask / "questions_answers_YN" if beside else subtask
        for file in sorted(texts.glob("*.txt")):
            picture = _picture_of(subtask / "images" if beside else subtask, file)
            yield from _questions_of_file(subtask.name, file, picture)


def _questions_of_file(subtask: str, file: Path, picture: VisualFiles) -> Iterator[Question]:
    lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    for number, line in enumerate(lines, start=1):
        place = RowPlace(str(file), number)
        question, tab, answer = line.rpartition("\t")
        if not tab:
            raise place.problem("line", "not a question, a tab and an answer", got=shown(line))
        yield Question(
            id=f"{subtask}/{file.stem}/{number}",
            prompt=question.strip(),
            visuals=(picture,),
            reference=_reference(answer, place),
            facets={"category": subtask},
            group=f"{subtask}/{file.stem}",
        )


def _picture_of(folder: Path, file: Path) -> VisualFiles:
    found = [path for path in sorted(folder.glob(f"{glob.escape(file.stem)}.*")) if path != file and is_picture(path)]
    if len(found) != 1:
        raise DataError(
            f"not one picture of the questions in {file}", got=f"{len(found)} in {folder}", expected=f"{file.stem}.jpg"
        )
    return VisualFiles((found[0].resolve(),))


def _reference(answer: str, place: RowPlace) -> str:
    plain = answer.strip().lower().replace(".", "")
    if plain not in ("yes", "no"):
        raise place.problem("answer", "neither yes nor no", got=shown(answer))
    return plain


def _known(category: str, place: RowPlace) -> str:
    if category not in PERCEPTION + COGNITION:
        raise place.problem(
            "category", "no subtask of MME", got=shown(category), expected=", ".join(PERCEPTION + COGNITION)
        )
    return category
