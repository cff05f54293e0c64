"""Shares of right answers, overall and by facet, and the means that benchmarks take of them."""

from collections.abc import Callable, Mapping, Sequence

from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question, Score


def share(name: str, outcomes: Sequence[bool]) -> Score:
    """The share of True."""
    return Score(name, sum(outcomes) / len(outcomes), len(outcomes), sum(outcomes))


def mean_of_shares(name: str, scores: Sequence[Score]) -> Score:
    """The plain mean of scores, each counted once whatever its number of examples."""
    return Score(name, sum(score.value for score in scores) / len(scores), sum(score.num_examples for score in scores))


def shares_by_facet(questions: Sequence[Question], is_correct: Mapping[str, bool]) -> list[Score]:
    """`overall`, then each value of each facet, in the order of their names."""
    scores = [share("overall", [is_correct[question.id] for question in questions])]
    for facet in sorted({facet for question in questions for facet in question.facets}):
        scores += shares_of(facet, questions, is_correct)
    return scores


def shares_of(facet: str, questions: Sequence[Question], is_correct: Mapping[str, bool]) -> list[Score]:
    """One share for each value of `facet`; questions without it are left out."""
    parts = split_by(lambda question: question.facets.get(facet, ""), questions)
    return [
        share(f"{facet}.{value}", [is_correct[question.id] for question in part])
        for value, part in sorted(parts.items())
        if value
    ]


def split_by(key: Callable[[Question], str], questions: Sequence[Question]) -> dict[str, list[Question]]:
    """Questions by `key`, in file order."""
    parts: dict[str, list[Question]] = {}
    for question in questions:
        parts.setdefault(key(question), []).append(question)
    return parts
