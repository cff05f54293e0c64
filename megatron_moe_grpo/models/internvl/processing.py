"""Questions, pictures and videos to token ids and pixel values, for one InternVL folder of either layout.

Local files only: the tokenizer, the chat template (run by transformers in its Jinja sandbox) and the image processor's
settings.  Never torchvision, never code from the model folder.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from megatron_moe_grpo.data.visuals import Visual, VisualSize
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.chat_processing import ChatProcessing, read_json, read_tokenizer
from megatron_moe_grpo.models.internvl.chat_assets import original_image_settings, read_original_tokenizer
from megatron_moe_grpo.models.internvl.chat_config import is_chat_layout
from megatron_moe_grpo.models.internvl.config import InternVLArchitecture
from megatron_moe_grpo.models.internvl.pixels import PixelSettings
from megatron_moe_grpo.models.internvl.prompt_template import CONTEXT_TOKEN, END_TOKEN, START_TOKEN, VIDEO_TOKEN
from megatron_moe_grpo.models.token_batch import TokenBatch
from megatron_moe_grpo.models.visual_inputs import VisualInputs

PLACEHOLDER = re.compile(f"{CONTEXT_TOKEN}|{VIDEO_TOKEN}")


class InternVLProcessing(ChatProcessing):
    """Turns rows into model inputs; a picture is one or more tiles, a video's frame one tile."""

    placeholder = PLACEHOLDER

    def __init__(self, tokenizer: PreTrainedTokenizerFast, pixels: PixelSettings, architecture: InternVLArchitecture):
        self.image_token_id: int = tokenizer.convert_tokens_to_ids(CONTEXT_TOKEN)
        super().__init__(tokenizer, (self.image_token_id,), architecture.text.vocab_size)
        self._pixels = pixels
        self.num_image_tokens: int = architecture.image_seq_length
        """Image tokens of one tile."""

    @classmethod
    def from_folder(cls, assets: Path) -> "InternVLProcessing":
        """Reads config.json, the tokenizer, its chat template and the image processor's settings.

        Raises:
            ConfigError: a file is missing, or the files do not belong together.
        """
        config = read_json(assets / "config.json")
        architecture = InternVLArchitecture.from_huggingface(config)
        is_original = is_chat_layout(config)
        tokenizer = read_original_tokenizer(assets) if is_original else read_tokenizer(assets)
        _check_tokenizer(tokenizer, architecture)
        settings = original_image_settings(assets, config) if is_original else _read_image_settings(assets)
        pixels = PixelSettings.from_huggingface(settings)
        side = architecture.vision.image_size
        if pixels.tiling.tile_size != (side, side):
            raise ConfigError(
                "The image processor and the vision tower disagree on the picture's size.",
                got=f"image processor {pixels.tiling.tile_size}",
                expected=f"{side} px square",
            )
        return cls(tokenizer, pixels, architecture)

    def encode(self, problem: str, options: tuple[str, ...], visuals: Sequence[VisualSize]) -> list[int]:
        """Prompt token ids: one user turn with visuals, question and options, then the assistant's mark.

        A picture becomes `<img>`, its tiles' tokens and `</img>`; a video one of those for each frame, one tile each,
        after `Frame1: `, `Frame2: `, ... and joined by line breaks.  The length is not limited here.

        Args:
            problem: the question; `<image>` and `<video>` tags say where the visuals go, without tags they come first.
            options: lines as they stand ("A. 3", "B. 7", ...), or none.
        Raises:
            DataError: text that spells a special token, or tags that do not match the visuals.
            ConfigError: the chat template has no place for the visuals.
        """
        prompt = self.prompt_text(problem, options, visuals)
        plain = PLACEHOLDER.split(prompt)
        if len(plain) != len(visuals) + 1:
            raise ConfigError(
                "The chat template does not place the visuals.",
                got=f"{len(plain) - 1} times {CONTEXT_TOKEN} or {VIDEO_TOKEN} for {len(visuals)} visuals",
                expected="the chat template of a native (-HF) InternVL folder",
            )
        expanded = [self.visual_text(visual) + text for visual, text in zip(visuals, plain[1:], strict=True)]
        return self.tokenizer.encode(plain[0] + "".join(expanded), add_special_tokens=False)

    def visual_text(self, visual: VisualSize) -> str:
        """`<img>`, tokens, `</img>`; of a video one of those for each frame."""
        if not visual.is_video:
            return self._tile_tokens(self._pixels.tiling.num_tiles(visual.width, visual.height))
        return "\n".join(f"Frame{number + 1}: {self._tile_tokens(1)}" for number in range(visual.num_frames))

    def visual_inputs(self, visuals: Sequence[Visual]) -> VisualInputs | None:
        """Resized and normalised tiles, float32 [tiles, 3, H, W]; None without visuals."""
        if not visuals:
            return None
        tiles: list[np.ndarray] = []
        for visual in visuals:
            for frame in visual.frames:
                tiles += [self._pixels.frame(frame)] if visual.is_video else self._pixels.tiles(frame)
        return VisualInputs(torch.from_numpy(np.stack(tiles)), num_features=len(tiles) * self.num_image_tokens)

    def rope_position_3S(self, prompt_ids: Sequence[int], grid_V3: Tensor | None) -> Tensor | None:
        """None: positions simply count."""
        return None

    def huggingface_inputs(self, batch: TokenBatch) -> dict[str, Tensor]:
        """Arguments of InternVLForConditionalGeneration."""
        inputs = {"input_ids": batch.token_ids_BS, "attention_mask": batch.is_real_BS.long()}
        # A batch without pictures must not name them at all: transformers takes neither None nor an empty tensor.
        return inputs if batch.pixel_values is None else inputs | {"pixel_values": batch.pixel_values}

    def _tile_tokens(self, num_tiles: int) -> str:
        return START_TOKEN + CONTEXT_TOKEN * (self.num_image_tokens * num_tiles) + END_TOKEN


def _check_tokenizer(tokenizer: PreTrainedTokenizerFast, architecture: InternVLArchitecture) -> None:
    vocabulary, expected_id = tokenizer.get_vocab(), architecture.image_token_id
    missing = [token for token in (START_TOKEN, END_TOKEN, CONTEXT_TOKEN) if token not in vocabulary]
    if missing or expected_id not in (None, vocabulary[CONTEXT_TOKEN]):
        raise ConfigError(
            "The tokenizer does not belong to this model.",
            got=f"missing: {missing}, {CONTEXT_TOKEN} is {vocabulary.get(CONTEXT_TOKEN)}",
            expected=f"{CONTEXT_TOKEN} is image_token_id {expected_id}" if expected_id else f"{CONTEXT_TOKEN}",
        )
    # Released folders name <video> as a token and give it no row: it is replaced before anything is encoded.
    without_row = {token for token, token_id in vocabulary.items() if token_id >= architecture.text.vocab_size}
    if without_row - {VIDEO_TOKEN}:
        raise ConfigError(
            "The tokenizer has more tokens than the model.",
            got=f"{len(tokenizer)} tokens",
            expected=f"at most {architecture.text.vocab_size}",
        )


def _read_image_settings(assets: Path) -> dict[str, Any]:
    """transformers 5 may nest the settings in processor_config.json."""
    if (assets / "preprocessor_config.json").is_file():
        return read_json(assets / "preprocessor_config.json")
    nested = read_json(assets / "processor_config.json").get("image_processor")
    if not isinstance(nested, dict):
        raise ConfigError(
            "The image processor's settings are missing.", got=assets, expected="preprocessor_config.json"
        )
    return nested
