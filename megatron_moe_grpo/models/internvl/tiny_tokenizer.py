"""A small but real tokenizer for the tiny model: any text survives it, and the demo's questions come out short."""

from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# The first ids, in this order; `<video>` is never used, but the stock InternVL processor asks for its name.
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_end|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")

# An option line of one digit may merge into one token (letter and digit bound together: a tiny model need not learn
# to carry the letter over), newlines, other digits and option marks stand alone, and what lies between may merge, so a
# whole question costs one or three. A bare answer letter stays a byte-level token of its own.
SPLIT_PATTERN = r"\n[A-D]\. \p{N}(?!\p{N})|\n|\p{N}|[A-Z]\. "

# Stock InternVL template: the processor replaces <IMG_CONTEXT> by <img>, image_seq_length of them, and </img>.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

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


def tiny_tokenizer(vocab_size: int = 512, model_max_length: int = 512) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the demo's phrases; deterministic, offline.

    `vocab_size` bounds the number of tokens: special tokens and the 256 bytes take 263 of them.
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
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        padding_side="left",
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )


def _corpus() -> Iterator[str]:
    """Questions often enough that they merge before the general text fills the vocabulary."""
    for _ in range(QUESTION_WEIGHT):
        yield from QUESTIONS
    yield from GENERAL_TEXT
