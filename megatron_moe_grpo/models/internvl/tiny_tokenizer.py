"""The tiny InternVL's tokenizer: the demo's, with InternVL's special tokens and chat template."""

from transformers import PreTrainedTokenizerFast

from megatron_moe_grpo.models.demo_tokenizer import Vocabulary, train_demo_tokenizer
from megatron_moe_grpo.models.drawn_tokenizer import drawn_tokenizer
from megatron_moe_grpo.models.internvl.prompt_template import CHAT_TEMPLATE, NAMED_TOKENS

# The first ids, in this order.
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_end|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")


def tiny_tokenizer(
    vocab_size: int = 512, model_max_length: int = 512, vocabulary: Vocabulary = "digits"
) -> PreTrainedTokenizerFast:
    """`vocab_size` bounds the number of tokens of "digits": special tokens and the 256 bytes take 263 of them."""
    if vocabulary == "drawn":
        return drawn_tokenizer(SPECIAL_TOKENS, CHAT_TEMPLATE, NAMED_TOKENS, model_max_length)
    return train_demo_tokenizer(SPECIAL_TOKENS, CHAT_TEMPLATE, NAMED_TOKENS, vocab_size, model_max_length)
