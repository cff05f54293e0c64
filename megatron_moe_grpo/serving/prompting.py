"""From a checked request to prompts that the engine takes."""

from collections.abc import Sequence

from megatron_moe_grpo.data.visuals import Visual, VisualSize
from megatron_moe_grpo.errors import ConfigError, DataError
from megatron_moe_grpo.models.chat_prompt import ChatTurn
from megatron_moe_grpo.models.processing import Processing
from megatron_moe_grpo.serving.generation import Prompt
from megatron_moe_grpo.serving.limits import Limits
from megatron_moe_grpo.serving.remote_images import RemoteImages
from megatron_moe_grpo.serving.request_error import RequestError, bad
from megatron_moe_grpo.serving.request_images import decode_images
from megatron_moe_grpo.serving.requests import ImagePart, Message, TextPart

# A character is at least a fortieth of a token in any text; longer texts are refused before they are tokenised.
CHARS_A_POSITION = 40


class Prompting:
    """Blocking work (pictures, tokenizer), for worker threads."""

    def __init__(self, processing: Processing, limits: Limits, vocab_size: int, remote: RemoteImages | None):
        self._processing, self._limits, self._vocab_size, self._remote = processing, limits, vocab_size, remote

    def of_chat(self, messages: Sequence[Message]) -> Prompt:
        """A conversation.  Raises RequestError."""
        parts = [part for message in messages for part in message.parts]
        self._refuse_unreadable([part.text for part in parts if isinstance(part, TextPart)])
        urls = [part.url for part in parts if isinstance(part, ImagePart)]
        visuals = decode_images(urls, self._limits, self._remote)
        try:
            ids = self._processing.chat_ids(_turns(messages, [visual.size for visual in visuals]))
            return self._prompt(ids, visuals)
        except (ConfigError, DataError) as error:
            raise bad(str(error).splitlines()[0], "messages") from error

    def of_completion(self, prompt: str | list[int]) -> Prompt:
        """Text as it stands, or token ids.  Raises RequestError."""
        if isinstance(prompt, str):
            self._refuse_unreadable([prompt])
            tokenizer = self._processing.tokenizer
            ids = tokenizer.encode(prompt, add_special_tokens=False, split_special_tokens=True)
        else:
            ids = prompt
            closed = set(self._processing.vision_token_ids)
            if any(not 0 <= token_id < self._vocab_size or token_id in closed for token_id in ids):
                raise bad(f"token ids are 0 to {self._vocab_size - 1}, those of images left out", "prompt")
        return self._prompt(ids, [])

    def _prompt(self, ids: Sequence[int], visuals: Sequence[Visual]) -> Prompt:
        if not ids:
            raise bad("the prompt is empty", "prompt")
        if len(ids) >= self._limits.max_positions:
            raise bad(f"the prompt has {len(ids)} tokens; prompt and answer have {self._limits.max_positions} places")
        inputs = self._processing.visual_inputs(visuals)
        grid_V3 = None if inputs is None else inputs.grid_V3
        return Prompt(tuple(ids), inputs, self._processing.rope_position_3S(ids, grid_V3))

    def _refuse_unreadable(self, texts: Sequence[str]) -> None:
        if sum(map(len, texts)) > self._limits.max_positions * CHARS_A_POSITION:
            raise RequestError(413, "the text is longer than the model can read")
        try:
            for text in texts:
                text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise bad("the text holds half a surrogate pair") from error


def _turns(messages: Sequence[Message], sizes: Sequence[VisualSize]) -> list[ChatTurn]:
    left = iter(sizes)
    return [
        ChatTurn(
            "system" if message.role == "developer" else message.role,
            tuple(part.text if isinstance(part, TextPart) else next(left) for part in message.parts),
        )
        for message in messages
    ]
