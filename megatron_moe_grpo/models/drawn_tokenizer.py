"""A tokenizer for the drawn questions: their words, numbers and tags are one token each; other text goes by bytes."""

from collections.abc import Mapping, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from megatron_moe_grpo.models.demo_tokenizer import as_stock_tokenizer

# Option lines of one digit stand whole (see demo_tokenizer.py), as do tags, line breaks, numbers, and words with the
# space before them.
SPLIT_PATTERN = r"\n[A-D]\. \p{N}(?!\p{N})|</?(?:think|answer)>|\n|\p{N}{1,3}|[A-Z]\. | ?\p{L}+|°"

TEXTS = (
    "user", "assistant", "<think></think><answer></answer>",
    "How many large small objects are there? How many things are large? 2 left+1 right",
    "any gray red blue green brown purple cyan yellow cubes spheres cylinders",
    "What is the missing angle? How long is the missing side? What is the area? What is the circumference?",
    "180-60-80/2*4*pi°",
    "Output the thinking process in <think> </think> and final answer (number) in <answer> </answer> tags.",
    *(f"\n{letter}. {digit}" for letter in "ABCD" for digit in range(10)),
)  # fmt: skip
LARGEST_NUMBER = 180
LARGEST_SIDE = 30
"""The squares of sides up to here have tokens as well."""


def drawn_tokenizer(
    special_tokens: Sequence[str],
    chat_template: str,
    named_tokens: Mapping[str, str],
    model_max_length: int,
) -> PreTrainedTokenizerFast:
    """Byte-level tokens, then whole words and no merges: nothing is trained, nothing lies between.

    Arguments as in `train_demo_tokenizer`.
    """
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    numbers = [str(number) for number in (*range(LARGEST_NUMBER + 1), *(side**2 for side in range(LARGEST_SIDE + 1)))]
    words = [piece for text in (*TEXTS, *numbers) for piece, _ in split.pre_tokenize_str(text)]
    tokens = dict.fromkeys([*special_tokens, *sorted(pre_tokenizers.ByteLevel.alphabet()), *words])
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    # ignore_merges: a piece that is a token is taken whole, though no merges lead there.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special_tokens))
    return as_stock_tokenizer(tokenizer, special_tokens, chat_template, named_tokens, model_max_length)
