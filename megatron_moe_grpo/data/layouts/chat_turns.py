"""A list of {role, content} as ms-swift and verl write it: one question, at most one answer."""

from collections.abc import Sequence

from megatron_moe_grpo.data.row_place import RowPlace, shown

SPEAKERS = (["user"], ["user", "assistant"])


def question_and_answer(turns: object, key: str, place: RowPlace) -> tuple[object, object]:
    """Contents of the user's turn and of the assistant's (None without one); their types are checked by `parse_row`.

    Raises DataError: no list of turns, several questions, a system message.
    """
    if not isinstance(turns, Sequence) or not all(isinstance(turn, dict) for turn in turns):
        raise place.problem(key, "wrong type", got=shown(turns), expected="a list of turns")
    speakers = [turn.get("role") for turn in turns]
    if speakers[:1] == ["system"]:
        raise place.problem(
            key,
            "a system message, which no prompt here has",
            got=shown(turns[0].get("content")),
            remedy="drop it; what the model needs of it goes into data.prompt_template",
        )
    if speakers not in SPEAKERS:
        raise place.problem(
            key,
            "not one question with at most one answer",
            got=f"speakers {shown(speakers)}",
            expected='[{"role": "user", "content": ...}]',
            remedy="make one row of every question",
        )
    contents = [turn.get("content") for turn in turns]
    for content in contents:
        if not isinstance(content, str):
            raise place.problem(
                key, "wrong type of content", got=shown(content), expected="text with <image> where a picture goes"
            )
    return contents[0], contents[1] if len(contents) == 2 else None
