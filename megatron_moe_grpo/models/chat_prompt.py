"""A conversation of several turns to token ids: what people type is text, whatever it spells."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from megatron_moe_grpo.data.visuals import VisualSize
from megatron_moe_grpo.errors import ConfigError

# Stand for the turns' texts while the template runs.  Private-use characters, so that no template means them.
OPENING, CLOSING = "\ue000", "\ue001"
STAND_IN = re.compile(f"{OPENING}([0-9]+){CLOSING}")


@dataclass(frozen=True)
class ChatTurn:
    """One message: its texts and visuals, in order."""

    role: str
    parts: tuple[str | VisualSize, ...]


def chat_prompt_ids(
    tokenizer: PreTrainedTokenizerFast,
    special_tokens: Mapping[str, int],
    placeholder: re.Pattern[str],
    visual_text: Callable[[VisualSize], str],
    turns: Sequence[ChatTurn],
) -> list[int]:
    """The template's rendering of `turns` with the assistant's mark, as token ids.

    The template sees stand-ins for the texts.  Special tokens are looked for in what the template wrote and nowhere
    else; every piece between two of them is encoded with its texts in place, as the tokenizer itself would cut it.

    Args:
        special_tokens: token -> id, of the whole tokenizer.
        placeholder: what the template writes for a visual.
        visual_text: the special tokens that a visual takes.
    Raises:
        ConfigError: the template has no place for a text or a visual, or refuses the roles.
    """
    texts = [part for turn in turns for part in turn.parts if isinstance(part, str)]
    visuals = [part for turn in turns for part in turn.parts if not isinstance(part, str)]
    rendered = _rendered(tokenizer, turns)
    plain = placeholder.split(rendered)
    named = [int(number) for number in STAND_IN.findall(rendered)]
    if named != list(range(len(texts))) or len(plain) != len(visuals) + 1:
        raise ConfigError(
            "The chat template does not show the whole conversation.",
            got=f"{len(named)} of {len(texts)} texts, {len(plain) - 1} of {len(visuals)} images",
            expected="each once, in order",
            remedy="ask with fewer roles, or give the model folder a chat template for them",
        )
    expanded = plain[0] + "".join(visual_text(visual) + text for visual, text in zip(visuals, plain[1:], strict=True))
    ids: list[int] = []
    for piece in _cut_at(special_tokens, expanded):
        if piece in special_tokens:
            ids.append(special_tokens[piece])
        elif piece:
            spelled = STAND_IN.sub(lambda match: texts[int(match.group(1))], piece)
            ids += tokenizer.encode(spelled, add_special_tokens=False, split_special_tokens=True)
    return ids


def _rendered(tokenizer: PreTrainedTokenizerFast, turns: Sequence[ChatTurn]) -> str:
    messages, number = [], 0
    for turn in turns:
        content: list[dict[str, str]] = []
        for part in turn.parts:
            if isinstance(part, str):
                content.append({"type": "text", "text": f"{OPENING}{number}{CLOSING}"})
                number += 1
            else:
                content.append({"type": "video" if part.is_video else "image"})
        messages.append({"role": turn.role, "content": content})
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _cut_at(special_tokens: Mapping[str, int], text: str) -> list[str]:
    """Special tokens and what is between them; the longest token wins where two begin alike."""
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
