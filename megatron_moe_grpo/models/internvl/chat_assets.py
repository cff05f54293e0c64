"""Tokenizer and image settings of the original `InternVLChatModel` layout, and as the native layout's files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.chat_processing import read_json
from megatron_moe_grpo.models.internvl.chat_config import native_config, native_image_settings
from megatron_moe_grpo.models.internvl.prompt_template import CHAT_TEMPLATE, CONTEXT_TOKEN, END_OF_TURN, NAMED_TOKENS


def read_original_tokenizer(assets: Path) -> PreTrainedTokenizerFast:
    """The folder's tokenizer with the native prompt; `tokenizer.json`, or Qwen2's `vocab.json` and `merges.txt`.

    Raises:
        ConfigError: neither is there, or the tokenizer has no end of turn, padding or picture tokens.
    """
    if (assets / "tokenizer.json").is_file():
        kind: type[PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    elif (assets / "vocab.json").is_file() and (assets / "merges.txt").is_file():
        kind = Qwen2Tokenizer
    else:
        raise ConfigError(
            "The tokenizer is missing.", got=assets, expected="tokenizer.json, or vocab.json and merges.txt"
        )
    tokenizer = kind.from_pretrained(assets, local_files_only=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    missing = [token for token in (CONTEXT_TOKEN, END_OF_TURN) if token not in tokenizer.get_vocab()]
    if missing or tokenizer.eos_token != END_OF_TURN or tokenizer.pad_token is None:
        raise ConfigError(
            "The tokenizer is not that of an InternVL model of template internvl2_5.",
            got=f"missing: {missing}, eos_token: {tokenizer.eos_token}, pad_token: {tokenizer.pad_token}",
            expected=f"{CONTEXT_TOKEN} in its vocabulary, {END_OF_TURN} as eos_token, and a pad_token",
        )
    return tokenizer


def original_image_settings(assets: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """`native_image_settings` of a folder, whose own settings may be missing."""
    path = assets / "preprocessor_config.json"
    return native_image_settings(config, read_json(path) if path.is_file() else {})


def write_native_assets(original: Path, target: Path) -> None:
    """Config, tokenizer and processor files with which stock transformers runs a model of an original folder.

    What transformers' conversion changes: the tokenizer names its picture tokens and gets the prompt and `<video>`, the
    end of a turn ends generation, and the image settings are those of the native processor.

    Args:
        original: a folder of the original layout, with `config.json` and tokenizer.
        target: an existing folder.
    Raises:
        ConfigError: a file is missing, or asks for what the native layout cannot say.
    """
    config, tokenizer = read_json(original / "config.json"), read_original_tokenizer(original)
    native = native_config(config, tokenizer.get_vocab())
    image_settings = original_image_settings(original, config)
    generation_path = original / "generation_config.json"
    generation = read_json(generation_path) if generation_path.is_file() else {}
    tokenizer.add_special_tokens({"extra_special_tokens": list(NAMED_TOKENS.values())})
    tokenizer.backend_tokenizer.save(str(target / "tokenizer.json"))
    (target / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    files = {
        "config.json": native,
        "tokenizer_config.json": _tokenizer_config(original),
        "preprocessor_config.json": image_settings,
        "video_preprocessor_config.json": _video_settings(image_settings),
        "processor_config.json": {
            "processor_class": "InternVLProcessor",
            "image_seq_length": native["image_seq_length"],
        },
        "generation_config.json": generation | {"eos_token_id": native["text_config"]["eos_token_id"]},
    }
    for name, content in files.items():
        (target / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _tokenizer_config(original: Path) -> dict[str, Any]:
    path = original / "tokenizer_config.json"
    config = read_json(path)
    for key in ("auto_map", "chat_template", "added_tokens_decoder"):
        config.pop(key, None)
    return config | {"extra_special_tokens": NAMED_TOKENS, "processor_class": "InternVLProcessor"}


def _video_settings(image_settings: Mapping[str, Any]) -> dict[str, Any]:
    """One tile a frame."""
    left_out = ("image_processor_type", "crop_to_patches", "min_patches", "max_patches")
    settings = {key: value for key, value in image_settings.items() if key not in left_out}
    return {"video_processor_type": "InternVLVideoProcessor"} | settings
