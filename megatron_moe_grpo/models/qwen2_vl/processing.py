"""Questions, pictures and videos to token ids and patches, for one Qwen2-VL folder.

Local files only: tokenizer.json, the chat template (run by transformers in its Jinja sandbox) and the image
processor's settings.  Never torchvision, never code from the model folder.
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
from megatron_moe_grpo.models.qwen2_vl.config import Qwen2VLArchitecture
from megatron_moe_grpo.models.qwen2_vl.pixels import PixelSettings
from megatron_moe_grpo.models.qwen2_vl.rope_positions import rope_position_3S
from megatron_moe_grpo.models.token_batch import TokenBatch
from megatron_moe_grpo.models.visual_inputs import VisualInputs

IMAGE_TOKEN, VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"
PLACEHOLDER = re.compile(f"{re.escape(IMAGE_TOKEN)}|{re.escape(VIDEO_TOKEN)}")


class Qwen2VLProcessing(ChatProcessing):
    """Turns rows into model inputs; a picture takes as many tokens as its resized area holds."""

    placeholder = PLACEHOLDER

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        image_pixels: PixelSettings,
        video_pixels: PixelSettings,
        architecture: Qwen2VLArchitecture,
    ):
        self.image_token_id: int = architecture.image_token_id
        self.video_token_id: int = architecture.video_token_id
        super().__init__(tokenizer, (self.image_token_id, self.video_token_id), architecture.text.vocab_size)
        self._image_pixels, self._video_pixels = image_pixels, video_pixels
        self._merge_size = architecture.vision.merge_size

    @classmethod
    def from_folder(cls, assets: Path) -> "Qwen2VLProcessing":
        """Reads config.json, the tokenizer, its chat template and the settings of pictures and videos.

        Raises:
            ConfigError: a file is missing, or the files do not belong together.
        """
        architecture = Qwen2VLArchitecture.from_huggingface(read_json(assets / "config.json"))
        tokenizer = read_tokenizer(assets)
        _check_tokenizer(tokenizer, architecture)
        image_settings, video_settings = _read_pixel_settings(assets)
        image_pixels = PixelSettings.from_huggingface(image_settings)
        video_pixels = PixelSettings.from_huggingface(video_settings, is_video=True)
        for pixels in (image_pixels, video_pixels):
            _check_pixels(pixels, architecture)
        return cls(tokenizer, image_pixels, video_pixels, architecture)

    def encode(self, problem: str, options: tuple[str, ...], visuals: Sequence[VisualSize]) -> list[int]:
        """Prompt token ids; the arguments are `ChatProcessing.prompt_text`'s.  The length is not limited here.

        Raises:
            DataError: text that spells a special token, tags that do not match, or a picture that is too thin.
        """
        text = self.prompt_text(problem, options, visuals)
        expected = [VIDEO_TOKEN if visual.is_video else IMAGE_TOKEN for visual in visuals]
        if PLACEHOLDER.findall(text) != expected:
            raise ConfigError(
                "The chat template does not write one placeholder for each visual.",
                got=", ".join(PLACEHOLDER.findall(text)) or "none",
                expected=", ".join(expected),
            )
        expansions = iter([self.visual_text(visual) for visual in visuals])
        expanded = PLACEHOLDER.sub(lambda _: next(expansions), text)
        return self.tokenizer.encode(expanded, add_special_tokens=False)

    def visual_text(self, visual: VisualSize) -> str:
        """As many placeholders as the visual has features."""
        return (VIDEO_TOKEN if visual.is_video else IMAGE_TOKEN) * self._num_tokens(visual)

    def visual_inputs(self, visuals: Sequence[Visual]) -> VisualInputs | None:
        """Patches of all visuals, float32 [patches, 3 * 2 * patch * patch], and their grids; None without visuals."""
        if not visuals:
            return None
        sizes = [visual.size for visual in visuals]
        patches = [self._pixels(size).patches(visual) for size, visual in zip(sizes, visuals, strict=True)]
        return VisualInputs(
            torch.from_numpy(np.concatenate(patches)),
            num_features=sum(map(self._num_tokens, sizes)),
            grid_V3=torch.tensor([self._pixels(size).grid(size) for size in sizes]),
        )

    def rope_position_3S(self, prompt_ids: Sequence[int], grid_V3: Tensor | None) -> Tensor:
        """Rotary positions (time, height, width) of a prompt, int64."""
        return rope_position_3S(prompt_ids, grid_V3, self.vision_token_ids, self._merge_size)

    def huggingface_inputs(self, batch: TokenBatch) -> dict[str, Tensor]:
        """Arguments of Qwen2VLForConditionalGeneration, which takes pictures and videos apart."""
        is_image_BS, is_video_BS = (batch.token_ids_BS == token_id for token_id in self.vision_token_ids)
        types_BS = (is_image_BS.int() + 2 * is_video_BS.int()) * batch.is_vision_BS
        inputs = {"input_ids": batch.token_ids_BS, "attention_mask": batch.is_real_BS.long()}
        if batch.grid_V3 is None:
            return inputs
        patches = batch.pixel_values.split(batch.grid_V3.prod(dim=1).tolist())
        starts_V = (batch.grid_V3.prod(dim=1) // self._merge_size**2).cumsum(0).roll(1)
        starts_V[0] = 0
        kind_of_slot = types_BS[batch.is_vision_BS]
        inputs["mm_token_type_ids"] = types_BS
        for kind, pixels_name, grid_name in (
            (1, "pixel_values", "image_grid_thw"),
            (2, "pixel_values_videos", "video_grid_thw"),
        ):
            chosen = [index for index, start in enumerate(starts_V.tolist()) if kind_of_slot[start] == kind]
            if chosen:
                inputs[pixels_name] = torch.cat([patches[index] for index in chosen])
                inputs[grid_name] = batch.grid_V3[chosen]
        return inputs

    def _pixels(self, size: VisualSize) -> PixelSettings:
        return self._video_pixels if size.is_video else self._image_pixels

    def _num_tokens(self, size: VisualSize) -> int:
        time, height, width = self._pixels(size).grid(size)
        return time * height * width // self._merge_size**2


def _check_tokenizer(tokenizer: PreTrainedTokenizerFast, architecture: Qwen2VLArchitecture) -> None:
    vocabulary = tokenizer.get_vocab()
    got = {token: vocabulary.get(token) for token in (IMAGE_TOKEN, VIDEO_TOKEN)}
    expected = {IMAGE_TOKEN: architecture.image_token_id, VIDEO_TOKEN: architecture.video_token_id}
    if got != expected:
        raise ConfigError("The tokenizer does not belong to this model.", got=got, expected=expected)
    if len(tokenizer) > architecture.text.vocab_size:
        raise ConfigError(
            "The tokenizer has more tokens than the model.",
            got=f"{len(tokenizer)} tokens",
            expected=f"at most {architecture.text.vocab_size}",
        )


def _check_pixels(pixels: PixelSettings, architecture: Qwen2VLArchitecture) -> None:
    vision = architecture.vision
    got = (pixels.patch_size, pixels.temporal_patch_size, pixels.merge_size)
    expected = (vision.patch_size, vision.temporal_patch_size, vision.merge_size)
    if got != expected:
        raise ConfigError(
            "The image processor and the vision tower disagree on the patches.",
            got=f"patch_size, temporal_patch_size, merge_size: {got}",
            expected=expected,
        )


def _read_pixel_settings(assets: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of pictures and of videos, from where transformers takes them.

    processor_config.json (nested by transformers 5), then the file of their own; videos may also use the pictures'.
    """
    nested = _read_if_there(assets / "processor_config.json") or {}
    beside = _read_if_there(assets / "preprocessor_config.json")
    of_videos = _read_if_there(assets / "video_preprocessor_config.json")
    image = nested.get("image_processor") or beside
    video = nested.get("video_processor") or of_videos or beside or image
    if not isinstance(image, dict) or not isinstance(video, dict):
        raise ConfigError(
            "The image processor's settings are missing.", got=assets, expected="preprocessor_config.json"
        )
    return image, video


def _read_if_there(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None
