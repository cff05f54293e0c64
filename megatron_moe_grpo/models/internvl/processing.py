"""Questions and pictures to token ids and pixel values, for one InternVL folder.

Local files only: tokenizer.json, the chat template (run by transformers in its Jinja sandbox) and the image
processor's settings.  Never torchvision, never code from the model folder.
"""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from megatron_moe_grpo.errors import ConfigError, DataError
from megatron_moe_grpo.models.internvl.config import InternVLArchitecture
from megatron_moe_grpo.models.internvl.pixels import PixelSettings

# A tag on a line of its own takes the line break along: the chat template writes one after every picture.
IMAGE_TAG = re.compile(r"<image>\n?")


class InternVLProcessing:
    """Turns rows into model inputs; one picture is one tile of `num_image_tokens` tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, pixels: PixelSettings, architecture: InternVLArchitecture):
        self.tokenizer = tokenizer
        self._pixels = pixels
        self._vocab_size = architecture.text.vocab_size
        self.image_token_id: int = architecture.image_token_id
        self.num_image_tokens: int = architecture.image_seq_length
        """Image tokens of one picture, the two marks around them not counted."""
        self.eos_token_id: int = tokenizer.eos_token_id
        """End of turn: the last token of every answer."""
        self.pad_token_id: int = tokenizer.pad_token_id

    @classmethod
    def from_folder(cls, assets: Path) -> "InternVLProcessing":
        """Reads config.json, the tokenizer, its chat template and the image processor's settings.

        Raises:
            ConfigError: a file is missing, or the files do not belong together.
        """
        architecture = InternVLArchitecture.from_huggingface(_read_json(assets / "config.json"))
        if not (assets / "tokenizer.json").is_file():
            raise ConfigError("The tokenizer is missing.", got=assets, expected="tokenizer.json beside config.json")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(assets, local_files_only=True)
        _check_tokenizer(tokenizer, architecture, assets)
        pixels = PixelSettings.from_huggingface(_read_image_settings(assets))
        side = architecture.vision.image_size
        if pixels.size != (side, side):
            raise ConfigError(
                "The image processor and the vision tower disagree on the picture's size.",
                got=f"image processor {pixels.size}",
                expected=f"{side} px square",
            )
        return cls(tokenizer, pixels, architecture)

    def encode(self, problem: str, options: tuple[str, ...], num_images: int) -> list[int]:
        """Prompt token ids: one user turn with pictures, question and options, then the assistant's mark.

        The length is not limited here.

        Args:
            problem: the question; `<image>` tags say where the pictures go, without tags they come first.
            options: lines as they stand ("A. 3", "B. 7", ...), or none.
        Raises:
            DataError: text that spells a special token, or tags that do not match the pictures.
        """
        self._refuse_special_tokens((problem, *options))
        message = {"role": "user", "content": message_content("\n".join((problem, *options)), num_images)}
        prompt = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        picture = f"<img>{'<IMG_CONTEXT>' * self.num_image_tokens}</img>"
        return self.tokenizer.encode(prompt.replace("<IMG_CONTEXT>", picture), add_special_tokens=False)

    def answer_ids(self, letter: str) -> list[int]:
        """Token ids of a whole answer: the letter and the end of turn."""
        return [*self.tokenizer.encode(letter, add_special_tokens=False), self.eos_token_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids without special tokens, exactly as it was before encoding."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def pixel_values(self, images: Sequence[Image.Image]) -> Tensor:
        """Resized and normalised pictures, float32 [num_images, 3, H, W]; [0, 3, H, W] without pictures."""
        arrays = [self._pixels.array(image) for image in images]
        return torch.from_numpy(np.stack(arrays)) if arrays else torch.zeros(0, 3, *self._pixels.size)

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Every token that must never be typed as text -> id."""
        added = self.tokenizer.added_tokens_decoder.items()
        return {token.content: token_id for token_id, token in added if token.special}

    @cached_property
    def suppressed_token_ids(self) -> tuple[int, ...]:
        """Ids that must never be sampled: special tokens but the end of turn, and padding rows of the embedding."""
        specials = {*self.special_tokens.values(), self.image_token_id} - {self.eos_token_id}
        return tuple(sorted(specials | set(range(len(self.tokenizer), self._vocab_size))))

    def _refuse_special_tokens(self, texts: Sequence[str]) -> None:
        typed = sorted({token for token in self.special_tokens for text in texts if token in text})
        if typed:
            raise DataError(
                "Special tokens typed as text.",
                got=", ".join(typed),
                expected="plain text, with <image> where a picture goes",
                remedy="remove them from the problem and the options",
            )


def message_content(text: str, num_images: int) -> list[dict[str, str]]:
    """Chat-template content: pictures where the `<image>` tags are, or all of them first.

    Raises:
        DataError: there are tags, but not one for each picture.
    """
    parts = IMAGE_TAG.split(text)
    num_tags = len(parts) - 1
    if num_tags not in (0, num_images):
        raise DataError(
            "The <image> tags do not match the pictures.",
            got=f"{num_tags} tags, {num_images} pictures",
            expected="no tags, or one for each picture",
        )
    content: list[dict[str, str]] = [] if num_tags else [{"type": "image"}] * num_images
    for number, part in enumerate(parts):
        content += [{"type": "image"}] * (number > 0)
        content += [{"type": "text", "text": part}] * (part != "")
    return content


def _check_tokenizer(tokenizer: PreTrainedTokenizerFast, architecture: InternVLArchitecture, assets: Path) -> None:
    if tokenizer.chat_template is None:
        raise ConfigError("The tokenizer has no chat template.", got=assets, expected="chat_template.jinja")
    if tokenizer.eos_token is None or tokenizer.pad_token is None:
        raise ConfigError(
            "The tokenizer names no end of turn or no padding token.",
            got=assets,
            expected="eos_token and pad_token in tokenizer_config.json",
        )
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in ("<img>", "</img>", "<IMG_CONTEXT>") if token not in vocabulary]
    if missing or vocabulary["<IMG_CONTEXT>"] != architecture.image_token_id:
        raise ConfigError(
            "The tokenizer does not belong to this model.",
            got=f"missing: {missing}, <IMG_CONTEXT> is {vocabulary.get('<IMG_CONTEXT>')}",
            expected=f"<IMG_CONTEXT> is image_token_id {architecture.image_token_id}",
        )
    if len(tokenizer) > architecture.text.vocab_size:
        raise ConfigError(
            "The tokenizer has more tokens than the model.",
            got=f"{len(tokenizer)} tokens",
            expected=f"at most {architecture.text.vocab_size}",
        )


def _read_image_settings(assets: Path) -> dict[str, Any]:
    """transformers 5 may nest the settings in processor_config.json."""
    if (assets / "preprocessor_config.json").is_file():
        return _read_json(assets / "preprocessor_config.json")
    nested = _read_json(assets / "processor_config.json").get("image_processor")
    if not isinstance(nested, dict):
        raise ConfigError(
            "The image processor's settings are missing.", got=assets, expected="preprocessor_config.json"
        )
    return nested


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("A file of the model folder cannot be read.", got=f"{path}: {error}") from error
