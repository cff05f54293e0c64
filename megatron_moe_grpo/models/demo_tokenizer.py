"""A small but real tokenizer for the tiny models: any text survives it, and the demo's questions come out short."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# An option line of one digit may merge into one token (letter and digit bound together: a tiny model need not learn
# to carry the letter over), newlines, other digits and option marks stand alone, and what lies between may merge, so a
# whole question costs one or three. A bare answer letter stays a byte-level token of its own.
SPLIT_PATTERN = r"\n[A-D]\. \p{N}(?!\p{N})|\n|\p{N}|[A-Z]\. "

Vocabulary = Literal["digits", "drawn"]
"""`digits`: the demo's phrases, below; `drawn`: the words of the counting and geometry questions (drawn_tokenizer.py)
and of no others."""

CELLS = ("top-left", "top-right", "bottom-left", "bottom-right")
QUESTIONS = (
    *(f"Which digit is in the {cell} cell?" for cell in CELLS),
    "How many 0s are there?",
    "Which is the largest digit?",
    *(f"\n{letter}. {digit}" for letter in "ABCD" for digit in range(10)),
    "user",
    "assistant",
)
GENERAL_TEXT = (
    "The picture shows a small grid of handwritten digits.",
    "Answer the question with the letter of the right option.",
    "What is the answer to this question about the image?",
    "There is one number in each of the four cells of the image.",
)
QUESTION_WEIGHT = 20


def train_demo_tokenizer(
    special_tokens: Sequence[str],
    chat_template: str,
    named_tokens: Mapping[str, str],
    vocab_size: int,
    model_max_length: int,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the demo's phrases; deterministic, offline.

    Args:
        special_tokens: take the first ids; the first one pads, the second one ends a turn.
        named_tokens: attributes by which the family's stock processor asks for special tokens.
        vocab_size: bounds the number of tokens; special tokens and the 256 bytes come first.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return as_stock_tokenizer(tokenizer, special_tokens, chat_template, named_tokens, model_max_length)


def as_stock_tokenizer(
    tokenizer: Tokenizer,
    special_tokens: Sequence[str],
    chat_template: str,
    named_tokens: Mapping[str, str],
    model_max_length: int,
) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers saves it: the first special token pads, the second one ends a turn."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=special_tokens[0],
        eos_token=special_tokens[1],
        padding_side="left",
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
        chat_template=chat_template,
        extra_special_tokens=dict(named_tokens),
    )


def _corpus() -> Iterator[str]:
    """Questions often enough that they merge before the general text fills the vocabulary."""
    for _ in range(QUESTION_WEIGHT):
        yield from QUESTIONS
    yield from GENERAL_TEXT
