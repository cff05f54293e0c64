"""Which rows are shown."""

from megatron_moe_grpo.data.schema import Row
from megatron_moe_grpo.evaluation.analysis.examples import choose_examples
from megatron_moe_grpo.evaluation.analysis.measure import Answer, AnsweredRow
from megatron_moe_grpo.rollout.prompts import EncodedRow


def answered(name: str, task: str, is_correct: bool) -> AnsweredRow:
    row = Row(name, "?", (), "A", task, ())
    return AnsweredRow(EncodedRow(row, (1,), ()), Answer("A", is_correct), [])


ROWS = [answered(f"r{i}", "common", True) for i in range(8)] + [
    answered("wrong", "common", False),
    answered("rare", "rare", True),
]


def names(count: int) -> list[str]:
    return [row.row.row.id for row in choose_examples(ROWS, count)]


def test_choose_examples_lets_tasks_and_outcomes_take_turns() -> None:
    assert names(4) == ["r0", "r1", "wrong", "rare"]


def test_choose_examples_stays_within_the_rows() -> None:
    assert names(0) == []
    assert names(100) == [row.row.row.id for row in ROWS]
