"""POST /v1/completions: OpenAI's older objects, with the prompt's own log-probabilities on request."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_moe_grpo.serving.chat_answer import ChatChoice, usage
from megatron_moe_grpo.serving.generation import Piece, Prompt, ScoredToken
from megatron_moe_grpo.serving.token_text import TokenText


@dataclass
class CompletionChoice(ChatChoice):
    """One response, and its prompt's tokens with `echo`."""

    prompt_ids: Sequence[int] = ()
    prompt: list[ScoredToken] = field(default_factory=list)

    def grow(self, piece: Piece) -> str:
        if piece.prompt:
            self.prompt = list(piece.prompt)
        return super().grow(piece)


class CompletionAnswer:
    """What is said of one request."""

    def __init__(
        self, head: dict[str, Any], choices: list[CompletionChoice], prompts: Sequence[Prompt], token_text: TokenText,
        has_logprobs: bool, echoes: bool, returns_routing: bool,
    ):  # fmt: skip
        """
        Args:
            head: id, created and model.
        """
        self._head, self._choices, self._token_text = head, choices, token_text
        self._num_prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
        self._has_logprobs, self._echoes, self._returns_routing = has_logprobs, echoes, returns_routing

    async def whole(self, pieces: AsyncIterator[tuple[int, Piece]]) -> dict[str, Any]:
        """One object when all choices have ended."""
        async for number, piece in pieces:
            self._choices[number].grow(piece)
        choices = [self._finished(index, choice) for index, choice in enumerate(self._choices)]
        return {**self._head, "object": "text_completion", "choices": choices, "usage": self._usage()}

    async def chunks(
        self, pieces: AsyncIterator[tuple[int, Piece]], includes_usage: bool
    ) -> AsyncIterator[dict[str, Any]]:
        """One object a piece; the prompt, with `echo`, is in a choice's first one."""
        begun: set[int] = set()
        async for number, piece in pieces:
            choice = self._choices[number]
            text = choice.grow(piece)
            tokens = [] if piece.token is None else [piece.token]
            if self._echoes and number not in begun:
                text, tokens = self._echo(choice) + text, choice.prompt + tokens
            begun.add(number)
            shown = {"index": number, "text": text, "finish_reason": piece.finish_reason}
            shown["logprobs"] = self._logprobs(tokens)
            yield {**self._head, "object": "text_completion", "choices": [shown]}
        if includes_usage:
            yield {**self._head, "object": "text_completion", "choices": [], "usage": self._usage()}

    def _finished(self, index: int, choice: CompletionChoice) -> dict[str, Any]:
        tokens = choice.prompt + choice.tokens if self._echoes else choice.tokens
        shown = {
            "index": index,
            "text": (self._echo(choice) if self._echoes else "") + choice.content,
            "finish_reason": choice.finish_reason,
            "logprobs": self._logprobs(tokens),
        }
        return shown | ({"routing": {"experts": choice.experts_SLK}} if self._returns_routing else {})

    def _echo(self, choice: CompletionChoice) -> str:
        return self._token_text.text(choice.prompt_ids)

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any] | None:
        if not self._has_logprobs:
            return None
        of = self._token_text.of
        return {
            "tokens": [of(token.token_id) for token in tokens],
            "token_logprobs": [token.logprob_nats for token in tokens],
            "top_logprobs": [
                {of(token_id): logprob for token_id, logprob in token.top} if token.logprob_nats is not None else None
                for token in tokens
            ],
            "text_offset": self._token_text.offsets([token.token_id for token in tokens]),
        }

    def _usage(self) -> dict[str, int]:
        return usage(self._num_prompt_tokens, sum(len(choice.tokens) for choice in self._choices))
