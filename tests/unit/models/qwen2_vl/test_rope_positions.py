"""M-RoPE positions against transformers' get_rope_index."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2VLForConditionalGeneration

from megatron_moe_grpo.models.qwen2_vl.rope_positions import rope_position_3S

IMAGE, VIDEO, START, END, TEXT = 5, 6, 3, 4, 40
Grid = tuple[int, int, int]


@pytest.fixture(scope="module")
def stock(qwen_folder: Path) -> Qwen2VLForConditionalGeneration:
    return Qwen2VLForConditionalGeneration.from_pretrained(qwen_folder)


def prompt_of(segments: list[int | Grid]) -> tuple[list[int], list[Grid]]:
    """Ids and grids of a prompt: an int is so many text tokens, a grid a visual between its marks."""
    ids: list[int] = []
    grids = [segment for segment in segments if isinstance(segment, tuple)]
    for segment in segments:
        if isinstance(segment, int):
            ids += [TEXT] * segment
        else:
            time, height, width = segment
            ids += [START, *[VIDEO if time > 1 else IMAGE] * (time * height * width // 4), END]
    return ids, grids


def expected_positions(stock: Qwen2VLForConditionalGeneration, ids: list[int], grids: list[Grid]) -> torch.Tensor:
    ids_1S = torch.tensor([ids])
    positions_31S, _ = stock.model.get_rope_index(
        ids_1S,
        mm_token_type_ids=(ids_1S == IMAGE).int() + 2 * (ids_1S == VIDEO).int(),
        image_grid_thw=torch.tensor([grid for grid in grids if grid[0] == 1]),
        video_grid_thw=torch.tensor([grid for grid in grids if grid[0] > 1]),
    )
    return positions_31S[:, 0]


def random_layouts() -> Iterator[list[int | Grid]]:
    generator = np.random.default_rng(0)
    for _ in range(50):
        layout: list[int | Grid] = []
        for _ in range(generator.integers(1, 6)):
            if generator.random() < 0.5:
                layout.append(int(generator.integers(1, 9)))
            else:
                time, height, width = generator.integers((1, 1, 1), (5, 6, 6))
                layout.append((int(time), 2 * int(height), 2 * int(width)))
        yield layout


@pytest.mark.parametrize(
    "segments",
    [
        [7],
        [2, (1, 4, 6), 3],
        [(1, 4, 4), (1, 2, 8), 5],
        [3, (4, 2, 4), 2],
        [1, (1, 8, 2), 2, (3, 4, 4), 4],
        [(8, 2, 2)],
    ],
    ids=["text", "image", "images", "video", "image_and_video", "long_video"],
)
def test_rope_positions_equal_transformers(stock: Qwen2VLForConditionalGeneration, segments: list[int | Grid]) -> None:
    ids, grids = prompt_of(segments)
    got = rope_position_3S(ids, torch.tensor(grids) if grids else None, (IMAGE, VIDEO), 2)
    assert got.dtype == torch.int64
    assert torch.equal(got, expected_positions(stock, ids, grids))


def test_rope_positions_equal_transformers_on_random_layouts(stock: Qwen2VLForConditionalGeneration) -> None:
    for segments in random_layouts():
        ids, grids = prompt_of(segments)
        got = rope_position_3S(ids, torch.tensor(grids) if grids else None, (IMAGE, VIDEO), 2)
        assert torch.equal(got, expected_positions(stock, ids, grids)), segments


def test_rope_positions_by_hand() -> None:
    """One word, a picture of 2 x 3 tokens between its marks, one word: [text, start, 6 x image, end, text]."""
    ids, grids = prompt_of([1, (1, 4, 6), 1])
    assert rope_position_3S(ids, torch.tensor(grids), (IMAGE, VIDEO), 2).tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]


def test_rope_positions_refuse_vision_tokens_without_a_grid() -> None:
    ids, grids = prompt_of([1, (1, 4, 6), 1, (1, 2, 2)])
    with pytest.raises(AssertionError, match="more vision tokens"):
        rope_position_3S(ids, torch.tensor(grids[:1]), (IMAGE, VIDEO), 2)
