"""The tiny Qwen2-VL's tokenizer: the demo's, with Qwen2-VL's special tokens and chat template."""

from transformers import PreTrainedTokenizerFast

from megatron_moe_grpo.models.demo_tokenizer import Vocabulary, train_demo_tokenizer
from megatron_moe_grpo.models.drawn_tokenizer import drawn_tokenizer

# The first ids, in this order.
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip

# Qwen2-VL's own template without the system prompt, which would cost a tiny model a dozen tokens a question.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif content['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer(
    vocab_size: int = 512, model_max_length: int = 512, vocabulary: Vocabulary = "digits"
) -> PreTrainedTokenizerFast:
    """`vocab_size` bounds the number of tokens of "digits": special tokens and the 256 bytes take 263 of them."""
    if vocabulary == "drawn":
        return drawn_tokenizer(SPECIAL_TOKENS, CHAT_TEMPLATE, {}, model_max_length)
    return train_demo_tokenizer(SPECIAL_TOKENS, CHAT_TEMPLATE, {}, vocab_size, model_max_length)
