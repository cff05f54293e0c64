"""TRL's GRPOTrainer on the same folder, pictures and question: whole steps of its own loop, ours run in between.

Written for TRL 1.16.0, which is not a requirement of this project: `is_trl_installed` tells.
"""

import importlib.util
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    InternVLForConditionalGeneration,
    InternVLProcessor,
    PreTrainedTokenizerFast,
    PrinterCallback,
    ProcessorMixin,
    TrainerCallback,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from megatron_moe_grpo.benchmark.measure import PhaseClock, Span
from megatron_moe_grpo.benchmark.shapes import GROUP_SIZE, LEARNING_RATE, NUM_NEW_TOKENS, PROBLEM


def is_trl_installed() -> bool:
    """True when both packages that the comparison needs can be imported."""
    return all(importlib.util.find_spec(name) is not None for name in ("trl", "accelerate"))


def run_between_trl_steps(
    folder: Path,
    pictures: list[Path],
    num_warmup: int,
    num_blocks: int,
    steps_per_block: int,
    ours: Callable[[], None],
) -> tuple[list[Span], PhaseClock]:
    """Trains with TRL and calls `ours` after the warm-up and after every block; returns the spans of TRL's steps.

    TRL's loop is a method that does not come back before the end, so our block runs inside a callback of it.
    """
    clock = PhaseClock()
    blocks = _Blocks(num_warmup, steps_per_block, ours, clock)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(folder, pictures, num_warmup + num_blocks * steps_per_block, Path(scratch))
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(blocks)
        trainer._generate_single_turn = clock.timed(trainer._generate_single_turn, "generate")
        trainer.train()
    return blocks.spans, clock


class _Blocks(TrainerCallback):
    """Times each step from the end of the one before, and hands over at the end of every block."""

    def __init__(self, num_warmup: int, steps_per_block: int, ours: Callable[[], None], clock: PhaseClock):
        self.spans: list[Span] = []
        self._num_warmup, self._steps_per_block = num_warmup, steps_per_block
        self._ours, self._clock = ours, clock
        self._num_done, self._started = 0, Span.now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """TRL has made one optimizer step."""
        taken = Span.now() - self._started
        self._num_done += 1
        num_measured = self._num_done - self._num_warmup
        if num_measured > 0:
            self.spans.append(taken)
        else:
            self._clock.spans.clear()
        if num_measured >= 0 and num_measured % self._steps_per_block == 0:
            self._ours()
        self._started = Span.now()


def _trainer(folder: Path, pictures: list[Path], num_steps: int, scratch: Path) -> Any:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageColumn
    from trl import GRPOConfig, GRPOTrainer

    processor = _processor(folder)
    model = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    images = [Image.open(pictures[index % len(pictures)]).convert("RGB") for index in range(2 * num_steps)]
    prompts = [[{"role": "user", "content": PROBLEM}]] * len(images)
    features = Features({"prompt": [{"role": Value("string"), "content": Value("string")}], "image": ImageColumn()})
    settings = GRPOConfig(
        output_dir=str(scratch),
        use_cpu=True,
        bf16=False,
        fp16=False,
        per_device_train_batch_size=GROUP_SIZE,
        num_generations=GROUP_SIZE,
        gradient_accumulation_steps=1,
        max_completion_length=NUM_NEW_TOKENS,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        beta=0.0,
        learning_rate=LEARNING_RATE,
        # No load balancing: transformers 5.23's InternVL output lacks the router logits that TRL would ask for.
        router_aux_loss_coef=0.0,
        gradient_checkpointing=False,
        max_steps=num_steps,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        # All tokens are generated, and never one that stands for a picture: the loss would look for its pixels.
        generation_kwargs={"min_new_tokens": NUM_NEW_TOKENS, "suppress_tokens": [model.config.image_token_id]},
        shuffle_dataset=False,
        seed=0,
    )
    return GRPOTrainer(
        model=model,
        reward_funcs=_share_of_even_tokens,
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": prompts, "image": images}, features=features),
        processing_class=processor,
    )


def _share_of_even_tokens(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """As cheap and as varied as the reward of our own steps."""
    return [sum(token % 2 == 0 for token in tokens) / max(1, len(tokens)) for tokens in completion_ids]


def _processor(folder: Path) -> Any:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    image_processor = GotOcr2ImageProcessorPil.from_pretrained(folder, local_files_only=True)
    num_image_tokens = InternVLForConditionalGeneration.config_class.from_pretrained(folder).image_seq_length
    return _ImageTextProcessor(image_processor, tokenizer, num_image_tokens)


class _ImageTextProcessor(InternVLProcessor):
    """The stock processor without its video half, which needs torchvision even when there is no video."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, image_seq_length: int = 256, **options: Any):
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=tokenizer.chat_template, **options)
        self.image_seq_length = image_seq_length
        self.start_image_token, self.end_image_token = tokenizer.start_image_token, tokenizer.end_image_token
        self.start_image_token_id = tokenizer.start_image_token_id
        self.end_image_token_id = tokenizer.end_image_token_id
        self.image_token, self.image_token_id = tokenizer.context_image_token, tokenizer.context_image_token_id
        self.video_token = tokenizer.video_token
        self.multimodal_pattern = re.compile(
            f"(?P<image>{re.escape(self.image_token)})|(?P<video>{re.escape(self.video_token)})"
        )
