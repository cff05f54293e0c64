"""The tokenizer's half of a processing, the same for every family: questions, answers, special tokens, tags."""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from megatron_moe_grpo.data.visuals import VisualSize
from megatron_moe_grpo.errors import ConfigError, DataError
from megatron_moe_grpo.models.chat_prompt import ChatTurn, chat_prompt_ids

# A tag on a line of its own takes the line break along: the same prompt as without tags, visuals first.
VISUAL_TAG = re.compile(r"<(image|video)>\n?")


class ChatProcessing:
    """A folder's tokenizer with its chat template (run by transformers in its Jinja sandbox)."""

    placeholder: re.Pattern[str]
    """What the family's chat templates write for a picture or a video."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vision_token_ids: tuple[int, ...], vocab_size: int):
        self.tokenizer = tokenizer
        self.vision_token_ids = vision_token_ids
        """Tokens whose embeddings image features replace."""
        self._vocab_size = vocab_size
        self.eos_token_id: int = tokenizer.eos_token_id
        """End of turn: the last token of every answer."""
        self.pad_token_id: int = tokenizer.pad_token_id

    def prompt_text(self, problem: str, options: tuple[str, ...], visuals: Sequence[VisualSize]) -> str:
        """One user turn with visuals, question and options, then the assistant's mark, as the chat template writes it.

        Args:
            problem: the question; `<image>` and `<video>` tags say where the visuals go, without tags they come first.
            options: lines as they stand ("A. 3", "B. 7", ...), or none.
        Raises:
            DataError: text that spells a special token, or tags that do not match the visuals.
        """
        self._refuse_special_tokens((problem, *options))
        message = {"role": "user", "content": message_content("\n".join((problem, *options)), visuals)}
        return self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)

    def chat_ids(self, turns: Sequence[ChatTurn]) -> list[int]:
        """Token ids of a conversation up to the assistant's mark; special tokens that are typed stay text.

        Raises:
            ConfigError: the chat template cannot show it.  DataError: a picture that the family cannot take.
        """
        return chat_prompt_ids(self.tokenizer, self.special_tokens, self.placeholder, self.visual_text, turns)

    def visual_text(self, visual: VisualSize) -> str:
        """The tokens that a visual's place in the prompt takes; each family's own."""
        raise NotImplementedError

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of a whole answer: its text and the end of turn.  Raises DataError: a special token typed as text.

        `<image>` and `<video>` stand for no visual in an answer, so where they are special tokens they are refused too.
        """
        self._refuse_typed([text], "the solution and the rationale")
        return [*self.tokenizer.encode(text, add_special_tokens=False), self.eos_token_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids without special tokens, exactly as it was before encoding."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Every token that must never be typed as text -> id."""
        added = self.tokenizer.added_tokens_decoder.items()
        return {token.content: token_id for token_id, token in added if token.special}

    @cached_property
    def suppressed_token_ids(self) -> tuple[int, ...]:
        """Ids that must never be sampled: special tokens but the end of turn, and padding rows of the embedding."""
        specials = {*self.special_tokens.values(), *self.vision_token_ids} - {self.eos_token_id}
        closed = specials | set(range(len(self.tokenizer), self._vocab_size))
        # A tokenizer may name a token that has no row: InternVL's <video> is replaced before anything is encoded.
        return tuple(sorted(token_id for token_id in closed if token_id < self._vocab_size))

    def _refuse_special_tokens(self, texts: Sequence[str]) -> None:
        # The tags are ours and leave the text before it is encoded, though InternVL's `<video>` is also a token.
        plain = [VISUAL_TAG.sub("", text) for text in texts]
        self._refuse_typed(plain, "the problem, the options and the prompt template")

    def _refuse_typed(self, texts: Sequence[str], where: str) -> None:
        typed = sorted({token for token in self.special_tokens for text in texts if token in text})
        if typed:
            raise DataError(
                "Special tokens typed as text.",
                got=", ".join(typed),
                expected="plain text, with <image> or <video> where the question shows a visual",
                remedy=f"remove them from {where}",
            )


def message_content(text: str, visuals: Sequence[VisualSize]) -> list[dict[str, str]]:
    """Chat-template content: visuals where their tags are, or all of them first.

    Raises:
        DataError: there are tags, but not one for each visual in their order.
    """
    kinds = ["video" if visual.is_video else "image" for visual in visuals]
    plain, *tagged = VISUAL_TAG.split(text)
    tags, texts = tagged[::2], tagged[1::2]
    if tags and tags != kinds:
        raise DataError(
            "The <image> and <video> tags do not match the visuals.",
            got=f"{len(tags)} tags ({', '.join(tags)}), {len(kinds)} visuals ({', '.join(kinds)})",
            expected="no tags, or one for each visual in the same order",
        )
    if not tags:
        return [{"type": kind} for kind in kinds] + _text_content(plain)
    content = _text_content(plain)
    for kind, following in zip(kinds, texts, strict=True):
        content += [{"type": kind}, *_text_content(following)]
    return content


def read_tokenizer(assets: Path) -> PreTrainedTokenizerFast:
    """The folder's tokenizer with the chat template its processor would use.

    The template may stand in chat_template.jinja, chat_template.json or tokenizer_config.json; the first one counts.

    Raises:
        ConfigError: no tokenizer.json, no chat template, no end of turn or no padding token.
    """
    if not (assets / "tokenizer.json").is_file():
        raise ConfigError("The tokenizer is missing.", got=assets, expected="tokenizer.json beside config.json")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(assets, local_files_only=True)
    beside = assets / "chat_template.json"
    if beside.is_file() and not (assets / "chat_template.jinja").is_file():
        tokenizer.chat_template = read_json(beside).get("chat_template")
    if not isinstance(tokenizer.chat_template, str):
        raise ConfigError(
            "The tokenizer has no chat template.",
            got=assets,
            expected="chat_template.jinja, chat_template.json, or chat_template in tokenizer_config.json",
        )
    if tokenizer.eos_token is None or tokenizer.pad_token is None:
        raise ConfigError(
            "The tokenizer names no end of turn or no padding token.",
            got=assets,
            expected="eos_token and pad_token in tokenizer_config.json",
        )
    return tokenizer


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.  Raises ConfigError for a file that is missing or is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("A file of the model folder cannot be read.", got=f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError("A file of the model folder is not a JSON object.", got=path)
    return value


def _text_content(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}] if text else []
