"""Names of single tokens, and where each one begins."""

from megatron_moe_grpo.models.internvl.tiny_tokenizer import tiny_tokenizer
from megatron_moe_grpo.serving.token_text import TokenText


class OnlyTokenizer:
    """As much of a processing as names need."""

    def __init__(self) -> None:
        self.tokenizer = tiny_tokenizer()


PROCESSING = OnlyTokenizer()


def ids_of(text: str) -> list[int]:
    return PROCESSING.tokenizer.encode(text, add_special_tokens=False)


def test_every_token_has_a_name_of_its_own() -> None:
    """A harness looks a token up among the likeliest ones by its name."""
    names = [TokenText(PROCESSING).of(token_id) for token_id in range(len(PROCESSING.tokenizer))]
    assert len(set(names)) == len(names)
    assert names[ids_of("a")[0]] == "a"
    assert names[PROCESSING.tokenizer.eos_token_id] == PROCESSING.tokenizer.eos_token
    first, second = ids_of("é")
    assert [names[first], names[second]] == [f"token_id:{first}", f"token_id:{second}"]


def test_offsets_count_characters_of_the_text() -> None:
    text = TokenText(PROCESSING)
    assert text.offsets(ids_of("xyz")) == [0, 1, 2]
    assert text.offsets(ids_of("xyz"), start=5) == [5, 6, 7]
    # Both bytes of the character begin where it does.
    assert text.offsets(ids_of("xéy")) == [0, 1, 1, 2]
