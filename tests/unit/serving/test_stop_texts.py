"""What a client sees of a growing response, against what it becomes in the end."""

import random

import pytest

from megatron_moe_grpo.serving.stop_texts import GrowingText, first_stop


def of_bytes(ids: list[int]) -> str:
    """A decoder whose tokens are single bytes: characters become whole late."""
    return bytes(ids).decode("utf-8", errors="replace")


def grow(text: str, stops: tuple[str, ...] = ()) -> list[str]:
    growing, ids = GrowingText(of_bytes, stops), list(text.encode())
    return [growing.add(token_id, is_last=index == len(ids) - 1) for index, token_id in enumerate(ids)]


def test_only_whole_characters_are_shown() -> None:
    assert grow("aé€") == ["a", "", "é", "", "", "€"]


def test_what_may_become_a_stop_text_waits() -> None:
    assert grow("a\nb\n\nc", ("\n\n",)) == ["a", "", "\nb", "", "", ""]
    assert grow("a\n", ("\n\n",)) == ["a", "\n"]


def test_the_earliest_stop_text_counts() -> None:
    assert first_stop("abcd", ["d", "bc"]) == 1
    assert first_stop("abcd", []) == -1
    assert "".join(grow("xENDy", ("yy", "END"))) == "x"


def test_a_stop_text_with_a_character_of_several_tokens_does_not_leak() -> None:
    assert "".join(grow("ok—", ("k—",))) == "o"


def test_an_unfinished_character_is_shown_at_the_end() -> None:
    growing = GrowingText(of_bytes, ())
    assert growing.add("é".encode()[0], is_last=True) == "\ufffd"


@pytest.mark.parametrize("seed", range(20))
def test_the_pieces_make_the_text_before_its_first_stop(seed: int) -> None:
    chance = random.Random(seed)
    text = "".join(chance.choice("ab\né€") for _ in range(40))
    stops = tuple("".join(chance.choice("ab\n") for _ in range(chance.randint(2, 4))) for _ in range(2))
    stop = min((place for one in stops if (place := text.find(one)) >= 0), default=len(text))
    assert "".join(grow(text, stops)) == text[:stop]
