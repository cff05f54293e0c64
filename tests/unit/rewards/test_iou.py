import time

import pytest

from megatron_moe_grpo.config.schema import RewardConfig
from megatron_moe_grpo.rewards.iou import Iou, box_iou, read_box


def test_box_iou_by_hand() -> None:
    # 10 x 10 boxes, shifted by (5, 5): overlap 25, union 175.
    assert box_iou((0, 0, 10, 10), (5, 5, 15, 15)) == pytest.approx(25 / 175)
    assert box_iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1.0
    assert box_iou((0, 0, 10, 10), (2, 2, 4, 4)) == pytest.approx(0.04)  # inside
    assert box_iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0.0  # touching
    assert box_iou((0, 0, 1, 1), (5, 5, 6, 6)) == 0.0


def test_box_iou_counts_pixels() -> None:
    # Against counting the unit cells of an integer grid, an independent way to the same areas.
    def cells(box: tuple[int, int, int, int]) -> set[tuple[int, int]]:
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    for box, other in (((0, 0, 7, 3), (2, 1, 9, 9)), ((1, 2, 5, 6), (4, 0, 8, 3)), ((0, 0, 9, 9), (3, 3, 4, 8))):
        expected = len(cells(box) & cells(other)) / len(cells(box) | cells(other))
        assert box_iou(box, other) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "strict", "official"),
    [
        ("[1,2,3,4]", (1, 2, 3, 4), (1, 2, 3, 4)),
        (" [ 1 , 2 , 3.5 , 4 ] ", (1, 2, 3.5, 4), (1, 2, 3.5, 4)),
        ("[-1, -2, 3, 4]", (-1, -2, 3, 4), (-1, -2, 3, 4)),
        ('{"boxes": [1, 2, 3, 4]}', (1, 2, 3, 4), (1, 2, 3, 4)),
        ('{"bbox_2d":[1,2,3,4]}', (1, 2, 3, 4), (1, 2, 3, 4)),
        ("(1,2),(3,4)", (1, 2, 3, 4), (1, 2, 3, 4)),
        ("(1, 2) (3, 4)", (1, 2, 3, 4), (1, 2, 3, 4)),
        ("The box is [1, 2, 3, 4].", None, (1, 2, 3, 4)),
        ("[1,2,3,4] or [5,6,7,8]", None, (1, 2, 3, 4)),
        ("[3,4,1,2]", None, None),  # corners are not swapped
        ("[1,2,1,4]", None, None),  # no area
        ("[1,2,3]", None, None),
        ("[1,2,3,4,5]", None, None),
        ("[1,2,3,1e9]", None, None),
        ("[1,2,3,99999999]", None, None),
        ("[nan,0,1,1]", None, None),
        ("[0,0,inf,inf]", None, None),
        ("1,2,3,4", None, None),
        ("[[1,2,3,4]]", None, (1, 2, 3, 4)),
        ("[1;2;3;4]", None, None),
        ("", None, None),
    ],
)
def test_read_box(text: str, strict: tuple[float, ...] | None, official: tuple[float, ...] | None) -> None:
    assert (read_box(text, "strict"), read_box(text, "official")) == (strict, official)


def test_iou_reads_inside_the_answer_only() -> None:
    reward = Iou(RewardConfig(extraction="official"))
    assert reward("<think>[0,0,10,10]</think><answer>[5,5,15,15]</answer>", "[0,0,10,10]", ()) == pytest.approx(1 / 7)
    assert reward("[0,0,10,10] <answer>none</answer>", "[0,0,10,10]", ()) == 0.0
    assert Iou(RewardConfig())("[0,0,10,10]", '{"boxes": [0,0,10,10]}', ()) == 1.0


def test_iou_problem_with() -> None:
    assert Iou(RewardConfig()).problem_with("[0,0,10,10]", ()) is None
    assert "no box" in Iou(RewardConfig()).problem_with("[10,10,0,0]", ())


@pytest.mark.parametrize("piece", ["[", "[1,", "[1,2,3,", " ", "(1,2),", "[1 ", "9"])
def test_read_box_is_fast_on_long_nonsense(piece: str) -> None:
    start_s = time.perf_counter()
    for extraction in ("strict", "official"):
        read_box("[" + piece * (200_000 // len(piece)), extraction)
    assert time.perf_counter() - start_s < 1.0  # measured at most 0.09 s
