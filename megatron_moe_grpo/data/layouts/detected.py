"""From a raw row of any known layout to the columns that `schema.parse_row` reads."""

from collections.abc import Callable, Mapping
from typing import Any

from megatron_moe_grpo.data.layouts.mmbench import from_mmbench, is_mmbench
from megatron_moe_grpo.data.layouts.r1v import from_r1v, is_r1v
from megatron_moe_grpo.data.layouts.swift import from_swift, is_swift
from megatron_moe_grpo.data.layouts.verl import from_verl, is_verl
from megatron_moe_grpo.data.row_place import RowPlace, shown

RawRow = Mapping[str, Any]
LAYOUTS: tuple[tuple[Callable[[RawRow], bool], Callable[[RawRow, RowPlace], dict[str, Any]]], ...] = (
    (is_verl, from_verl),
    (is_swift, from_swift),
    (is_mmbench, from_mmbench),
    (is_r1v, from_r1v),
)
OWN_COLUMNS = ("problem", "solution", "options", "conversations")
KNOWN = (
    "OneThinker (problem, options, solution), LLaVA (conversations), R1-V (image, problem, solution; or image_path, "
    "question, ground_truth), verl (prompt, reward_model), ms-swift (messages), MMBench (index, image, question, A, B, "
    "..., answer)"
)


def to_own_columns(raw: RawRow, place: RowPlace) -> RawRow:
    """The row with the columns of `data/schema.py`.

    Raises DataError: columns of no known layout, or what the layout's own file refuses.
    """
    given = {name: value for name, value in raw.items() if value is not None}
    for is_layout, convert in LAYOUTS:
        if is_layout(given):
            return convert(given, place)
    if not any(name in raw for name in OWN_COLUMNS):
        raise place.problem(
            "row",
            "columns of no known layout",
            got=shown(list(raw)),
            expected=KNOWN,
            remedy="rename the columns, or drop the row",
        )
    return raw
