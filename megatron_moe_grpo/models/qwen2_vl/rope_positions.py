"""Multimodal rotary positions: where a token stands in time, height and width (Qwen2-VL, section 2.1)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def rope_position_3S(
    prompt_ids: Sequence[int], grid_V3: Tensor | None, vision_token_ids: Sequence[int], merge_size: int
) -> Tensor:
    """Positions [3, S], int64, of one prompt; equal to `get_rope_index` of transformers' Qwen2VLModel.

    Text counts on in all three.  A visual starts where the text before it ends and spans its grid; the text behind it
    starts after the longer side of the grid, however many tokens or frames the visual has.

    Args:
        grid_V3: (time, height, width) of each visual in patches, in reading order; None for a prompt without.
        vision_token_ids: the tokens that visuals were expanded to.
        merge_size: patches to a side of one token.
    """
    ids, vision = list(prompt_ids), set(vision_token_ids)
    grids = [] if grid_V3 is None else grid_V3.tolist()
    parts, place, start = [], 0, 0
    for time, height, width in grids:
        first = next(index for index in range(place, len(ids)) if ids[index] in vision)
        parts.append(_text_3T(start, first - place))
        start += first - place
        rows, columns = height // merge_size, width // merge_size
        axes = torch.arange(time), torch.arange(rows), torch.arange(columns)
        parts.append(torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1) + start)
        start += max(rows, columns)
        place = first + time * rows * columns
    assert not vision.intersection(ids[place:]), "more vision tokens than the grids account for"
    return torch.cat((*parts, _text_3T(start, len(ids) - place)), dim=1)


def _text_3T(start: int, length: int) -> Tensor:
    return torch.arange(start, start + length).expand(3, -1)
