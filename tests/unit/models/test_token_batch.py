"""Left padding, image slots in reading order, and groups that share their images."""

import pytest
import torch

from megatron_moe_grpo.models.token_batch import TokenBatch, pad_prompts
from megatron_moe_grpo.models.visual_inputs import VisualInputs

PAD, IMAGE, VIDEO = 0, 9, 8


def pictures(*values: float, grid: list[list[int]] | None = None) -> VisualInputs:
    """Two features a picture."""
    pixels = torch.tensor(values)[:, None, None, None].expand(-1, 3, 2, 2)
    return VisualInputs(pixels, 2 * len(values), None if grid is None else torch.tensor(grid))


def mixed_batch(num_positions: int | None = None) -> TokenBatch:
    """Two images, text only, one image; two tokens an image."""
    prompts = [[1, IMAGE, IMAGE, 2, IMAGE, IMAGE, 3], [4, 5], [IMAGE, IMAGE, 6]]
    images = [pictures(0.1, 0.2), None, pictures(0.3)]
    return pad_prompts(prompts, images, (IMAGE,), PAD, num_positions)


def test_pad_prompts_pads_on_the_left() -> None:
    batch = mixed_batch()
    assert batch.token_ids_BS.tolist() == [[1, 9, 9, 2, 9, 9, 3], [0, 0, 0, 0, 0, 4, 5], [0, 0, 0, 0, 9, 9, 6]]
    assert batch.is_real_BS.tolist() == [[True] * 7, [False] * 5 + [True] * 2, [False] * 4 + [True] * 3]
    assert batch.position_BS.tolist() == [[0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1, 2]]


def test_pad_prompts_numbers_image_tokens_in_the_order_of_their_pictures() -> None:
    batch = mixed_batch()
    assert batch.image_slot_BS.tolist() == [[-1, 0, 1, -1, 2, 3, -1], [-1] * 7, [-1, -1, -1, -1, 4, 5, -1]]
    assert batch.pixel_values[:, 0, 0, 0].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert torch.equal(batch.is_vision_BS, batch.token_ids_BS == IMAGE)


def test_pad_prompts_to_a_given_length_adds_padding_only() -> None:
    short, long = mixed_batch(), mixed_batch(10)
    assert long.token_ids_BS.shape == (3, 10)
    assert not long.is_real_BS[:, :3].any()
    assert torch.equal(long.token_ids_BS[:, 3:], short.token_ids_BS)
    assert torch.equal(long.image_slot_BS[:, 3:], short.image_slot_BS)
    assert torch.equal(long.position_BS[:, 3:], short.position_BS)


def test_pad_prompts_without_images_has_no_pixels() -> None:
    batch = pad_prompts([[1], [2, 3]], [None, None], (IMAGE,), PAD)
    assert batch.pixel_values is None
    assert not batch.is_vision_BS.any()


def test_pad_prompts_does_not_take_padding_for_an_image() -> None:
    batch = pad_prompts([[1], [2, 3]], [None, None], vision_token_ids=(PAD,), pad_token_id=PAD)
    assert not batch.is_vision_BS.any()


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_pad_prompts_refuses_image_tokens_without_features(num_tokens: int) -> None:
    with pytest.raises(AssertionError, match=f"{num_tokens} vision tokens, 2 features"):
        pad_prompts([[IMAGE] * num_tokens], [pictures(0.1)], (IMAGE,), PAD)


def test_repeated_copies_sequences_and_shares_images() -> None:
    batch = mixed_batch()
    groups = batch.repeated(3)
    assert groups.pixel_values is batch.pixel_values
    assert torch.equal(groups.token_ids_BS, batch.token_ids_BS[[0, 0, 0, 1, 1, 1, 2, 2, 2]])
    assert torch.equal(groups.is_real_BS, batch.is_real_BS[[0, 0, 0, 1, 1, 1, 2, 2, 2]])
    # Rollouts of one prompt point at the same rows of the features.
    assert groups.image_slot_BS[0].tolist() == groups.image_slot_BS[2].tolist() == batch.image_slot_BS[0].tolist()


def test_extended_appends_text_whose_positions_go_on() -> None:
    batch = mixed_batch()
    longer = batch.extended(
        torch.tensor([[7, 8], [7, 8], [7, IMAGE]]), torch.tensor([[True, True]] * 2 + [[True, False]])
    )
    assert longer.token_ids_BS[:, -2:].tolist() == [[7, 8], [7, 8], [7, IMAGE]]
    assert longer.position_BS[:, -2:].tolist() == [[7, 8], [2, 3], [3, 3]]
    assert (longer.image_slot_BS[:, -2:] == -1).all()
    assert longer.pixel_values is batch.pixel_values
    assert torch.equal(longer.image_slot_BS[:, :-2], batch.image_slot_BS)


def multimodal_batch() -> TokenBatch:
    """Two kinds of vision token, grids, and rotary positions that do not count: a 1 x 2 picture, then text."""
    prompts = [[1, IMAGE, IMAGE, 2], [VIDEO, VIDEO]]
    rope = [torch.tensor([[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]]), torch.tensor([[0, 1], [0, 0], [0, 0]])]
    visuals = [pictures(0.1, grid=[[1, 2, 4]]), pictures(0.2, grid=[[2, 2, 2]])]
    return pad_prompts(prompts, visuals, (IMAGE, VIDEO), PAD, rope_positions=rope)


def test_pad_prompts_joins_grids_and_pads_rotary_positions_on_the_left() -> None:
    batch = multimodal_batch()
    assert batch.image_slot_BS.tolist() == [[-1, 0, 1, -1], [-1, -1, 2, 3]]
    assert batch.grid_V3.tolist() == [[1, 2, 4], [2, 2, 2]]
    assert batch.rope_position_3BS.tolist() == [
        [[0, 1, 1, 3], [0, 0, 0, 1]], [[0, 1, 1, 3], [0, 0, 0, 0]], [[0, 1, 2, 3], [0, 0, 0, 0]],
    ]  # fmt: skip


def test_extended_text_goes_on_from_the_largest_rotary_position() -> None:
    longer = multimodal_batch().extended(torch.tensor([[5, 6], [5, 6]]), torch.ones(2, 2, dtype=torch.bool))
    assert longer.rope_position_3BS[:, :, -2:].tolist() == [[[4, 5], [2, 3]]] * 3
    again = multimodal_batch().extended(torch.tensor([[5], [5]]), torch.ones(2, 1, dtype=torch.bool))
    again = again.extended(torch.tensor([[6], [6]]), torch.ones(2, 1, dtype=torch.bool))
    assert torch.equal(again.rope_position_3BS, longer.rope_position_3BS)


def test_repeated_repeats_rotary_positions_with_their_sequences() -> None:
    batch = multimodal_batch()
    assert torch.equal(batch.repeated(2).rope_position_3BS, batch.rope_position_3BS[:, [0, 0, 1, 1]])
    assert batch.repeated(2).grid_V3 is batch.grid_V3


def test_to_moves_every_tensor() -> None:
    moved = multimodal_batch().to(torch.device("meta"))
    tensors = (
        moved.token_ids_BS, moved.is_real_BS, moved.image_slot_BS, moved.pixel_values, moved.grid_V3,
        moved.rope_position_3BS,
    )  # fmt: skip
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert pad_prompts([[1]], [None], (IMAGE,), PAD).to(torch.device("meta")).pixel_values is None
