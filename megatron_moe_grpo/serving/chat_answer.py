"""POST /v1/chat/completions: OpenAI's objects, whole or in chunks."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from megatron_moe_grpo.serving.generation import Piece, ScoredToken
from megatron_moe_grpo.serving.stop_texts import GrowingText
from megatron_moe_grpo.serving.token_text import TokenText


@dataclass
class ChatChoice:
    """One response so far."""

    text: GrowingText
    content: str = ""
    tokens: list[ScoredToken] = field(default_factory=list)
    finish_reason: str | None = None
    experts_SLK: list[list[list[int]]] = field(default_factory=list)

    def grow(self, piece: Piece) -> str:
        """Takes a piece in; returns the text that it adds."""
        token_id = None if piece.token is None else piece.token.token_id
        added = self.text.add(token_id, is_last=piece.finish_reason is not None)
        self.content += added
        self.finish_reason = piece.finish_reason
        self.experts_SLK = piece.experts_SLK
        if piece.token is not None:
            self.tokens.append(piece.token)
        return added


class ChatAnswer:
    """What is said of one request."""

    def __init__(
        self, head: dict[str, Any], choices: list[ChatChoice], num_prompt_tokens: int, token_text: TokenText,
        has_logprobs: bool, returns_routing: bool,
    ):  # fmt: skip
        """
        Args:
            head: id, created and model.
        """
        self._head, self._choices, self._num_prompt_tokens = head, choices, num_prompt_tokens
        self._token_text, self._has_logprobs, self._returns_routing = token_text, has_logprobs, returns_routing

    async def whole(self, pieces: AsyncIterator[tuple[int, Piece]]) -> dict[str, Any]:
        """One object when all choices have ended."""
        async for number, piece in pieces:
            self._choices[number].grow(piece)
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.content},
                "finish_reason": choice.finish_reason,
                "logprobs": self._logprobs(choice.tokens),
                **self._routing(choice),
            }
            for index, choice in enumerate(self._choices)
        ]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self._usage()}

    async def chunks(
        self, pieces: AsyncIterator[tuple[int, Piece]], includes_usage: bool
    ) -> AsyncIterator[dict[str, Any]]:
        """One object a piece; the last ones of each choice name its reason."""
        for index in range(len(self._choices)):
            yield self._chunk(index, {"role": "assistant", "content": ""})
        async for number, piece in pieces:
            choice = self._choices[number]
            added = choice.grow(piece)
            tokens = [] if piece.token is None else [piece.token]
            chunk = self._chunk(number, {"content": added} if added else {})
            chunk["choices"][0] |= {"finish_reason": piece.finish_reason, "logprobs": self._logprobs(tokens)}
            if piece.finish_reason is not None:
                chunk["choices"][0] |= self._routing(choice)
            yield chunk
        if includes_usage:
            yield {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage()}

    def _chunk(self, index: int, delta: dict[str, str]) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": None, "logprobs": None}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _logprobs(self, tokens: list[ScoredToken]) -> dict[str, Any] | None:
        if not self._has_logprobs:
            return None
        content = [
            {
                **self._named(token.token_id, token.logprob_nats),
                "top_logprobs": [self._named(token_id, logprob) for token_id, logprob in token.top],
            }
            for token in tokens
        ]
        return {"content": content}

    def _named(self, token_id: int, logprob_nats: float | None) -> dict[str, Any]:
        text = self._token_text.of(token_id)
        return {"token": text, "logprob": logprob_nats, "bytes": list(text.encode())}

    def _routing(self, choice: ChatChoice) -> dict[str, Any]:
        return {"routing": {"experts": choice.experts_SLK}} if self._returns_routing else {}

    def _usage(self) -> dict[str, int]:
        return usage(self._num_prompt_tokens, sum(len(choice.tokens) for choice in self._choices))


def usage(num_prompt_tokens: int, num_completion_tokens: int) -> dict[str, int]:
    """OpenAI's counts; the end of turn counts."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_completion_tokens,
        "total_tokens": num_prompt_tokens + num_completion_tokens,
    }
