"""What each address of the server does with a request."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from megatron_moe_grpo.models.processing import Processing
from megatron_moe_grpo.serving.chat_answer import ChatAnswer, ChatChoice
from megatron_moe_grpo.serving.completion_answer import CompletionAnswer, CompletionChoice
from megatron_moe_grpo.serving.engine import Engine
from megatron_moe_grpo.serving.generation import Prompt
from megatron_moe_grpo.serving.limits import Limits
from megatron_moe_grpo.serving.listener import Listener, random_seed
from megatron_moe_grpo.serving.prompting import Prompting
from megatron_moe_grpo.serving.request_body import BodyReader
from megatron_moe_grpo.serving.request_error import RequestError, bad
from megatron_moe_grpo.serving.requests import ChatRequest, CompletionRequest, GenerationRequest, parse_request
from megatron_moe_grpo.serving.stop_texts import GrowingText
from megatron_moe_grpo.serving.token_text import TokenText
from megatron_moe_grpo.serving.traffic import Traffic

# OpenAI's default for /v1/completions.
COMPLETION_TOKENS = 16


@dataclass(frozen=True, eq=False)
class Served:
    """One model and how it is served."""

    name: str
    engine: Engine
    processing: Processing
    prompting: Prompting
    limits: Limits
    api_key: str | None = None
    """None: everyone may ask."""


class Endpoints:
    """The addresses of one server; errors are RequestErrors, which the application turns into answers."""

    def __init__(self, served: Served, traffic: Traffic):
        self._served, self._traffic, self._token_text = served, traffic, TokenText(served.processing)
        self._bodies = BodyReader(served.limits)

    async def health(self) -> Response:
        """503 once the engine's thread is gone."""
        is_alive = self._served.engine.is_alive
        return JSONResponse({"status": "ok" if is_alive else "the engine is gone"}, 200 if is_alive else 503)

    async def metrics(self) -> Response:
        """For Prometheus."""
        return Response(self._traffic.text(), media_type="text/plain; version=0.0.4")

    async def models(self) -> Response:
        """The one that is served."""
        served = self._served
        about = {"id": served.name, "object": "model", "created": 0, "owned_by": "megatron_moe_grpo"}
        return JSONResponse({"object": "list", "data": [about | {"max_model_len": served.limits.max_positions}]})

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        served = self._served
        async with AsyncExitStack() as held:
            body = await self._bodies.json_object(request, held)
            asked = parse_request(ChatRequest, body, served.limits)
            self._check_model(asked)
            prompt = await asyncio.to_thread(served.prompting.of_chat, asked.messages)
        most = asked.max_completion_tokens or asked.max_tokens or served.limits.max_new_tokens
        num_top = (asked.top_logprobs or 0) if asked.logprobs else 0
        listener = self._listen(asked, [prompt], most, num_top, has_prompt_logprobs=False)
        choices = [ChatChoice(GrowingText(served.processing.decode, asked.stops)) for _ in range(asked.num_choices)]
        answer = ChatAnswer(
            self._head("chatcmpl"), choices, len(prompt.ids), self._token_text, bool(asked.logprobs),
            asked.return_routing,
        )  # fmt: skip
        return await self._respond(request, asked, answer, listener)

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions."""
        served = self._served
        async with AsyncExitStack() as held:
            body = await self._bodies.json_object(request, held)
            asked = parse_request(CompletionRequest, body, served.limits)
            self._check_model(asked)
            prompts = [await asyncio.to_thread(served.prompting.of_completion, prompt) for prompt in asked.prompts]
        most = COMPLETION_TOKENS if asked.max_tokens is None else asked.max_tokens
        echoes, has_logprobs = bool(asked.echo), asked.logprobs is not None
        if most == 0 and not echoes:
            raise bad("max_tokens is 0 without echo: nothing would be answered", "max_tokens")
        listener = self._listen(asked, prompts, most, asked.logprobs or 0, echoes and has_logprobs)
        choices = [
            CompletionChoice(GrowingText(served.processing.decode, asked.stops), prompt_ids=prompt.ids)
            for prompt in prompts
            for _ in range(asked.num_choices)
        ]
        answer = CompletionAnswer(
            self._head("cmpl"), choices, prompts, self._token_text, has_logprobs, echoes, asked.return_routing
        )
        return await self._respond(request, asked, answer, listener)

    def _listen(
        self, asked: GenerationRequest, prompts: list[Prompt], most: int, num_top: int, has_prompt_logprobs: bool
    ) -> Listener:
        most = min(most, self._served.limits.max_new_tokens)
        sampling = asked.sampling(most, num_top, random_seed(), has_prompt_logprobs)
        listener = Listener(self._served.engine, prompts, sampling, asked.num_choices)
        self._traffic.prompt_tokens.inc(sum(len(prompt.ids) for prompt in prompts))
        return listener

    async def _respond(
        self, request: Request, asked: GenerationRequest, answer: ChatAnswer | CompletionAnswer, listener: Listener
    ) -> Response:
        pieces = self._counted(listener.pieces(request))
        if not asked.stream:
            return JSONResponse(await answer.whole(pieces))
        includes_usage = asked.stream_options is not None and asked.stream_options.include_usage
        return StreamingResponse(_events(answer.chunks(pieces, includes_usage)), media_type="text/event-stream")

    async def _counted(self, pieces: AsyncIterator[tuple[int, Any]]) -> AsyncIterator[tuple[int, Any]]:
        async for number, piece in pieces:
            if piece.token is not None:
                self._traffic.completion_tokens.inc()
            yield number, piece

    def _head(self, prefix: str) -> dict[str, Any]:
        return {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": self._served.name}

    def _check_model(self, asked: GenerationRequest) -> None:
        name = self._served.name
        if asked.model and asked.model != name:
            message = f"the model {asked.model[:100]!r} is not served here, {name!r} is"
            raise RequestError(404, message, param="model", code="model_not_found")


async def _events(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    try:
        async for chunk in chunks:
            yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
        yield "data: [DONE]\n\n"
    except RequestError as error:
        # The status has gone out already.
        yield f"data: {json.dumps(error.body(), ensure_ascii=False)}\n\n"
