"""A request's bytes and its JSON, within limits: nothing is read or parsed beyond them."""

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any, NoReturn

from fastapi import Request

from megatron_moe_grpo.serving.limits import Limits
from megatron_moe_grpo.serving.request_error import RequestError, bad


class BodyReader:
    """Reads the bodies of one server's requests; the large ones share a few places in memory."""

    def __init__(self, limits: Limits):
        self._limits, self._large = limits, asyncio.Semaphore(limits.max_large_bodies)

    async def json_object(self, request: Request, held: AsyncExitStack) -> dict[str, Any]:
        """The body as a JSON object.

        Args:
            held: keeps a large body's place until it is closed.
        Raises:
            RequestError: too long, too slow, compressed, not UTF-8, no JSON, or no object.
        """
        if request.headers.get("content-encoding", "identity") != "identity":
            raise RequestError(415, "compressed bodies are not read")
        limit_s = self._limits.max_body_s
        try:
            content = await asyncio.wait_for(self._read(request, held), limit_s)
        except asyncio.TimeoutError as error:
            raise RequestError(408, f"the body did not arrive within {limit_s:g} s") from error
        # Off the event loop: a body of many megabytes takes a while.
        value = await asyncio.to_thread(_parse, content)
        if not isinstance(value, dict):
            raise bad(f"the body is a JSON {type(value).__name__}, not an object")
        return value

    async def _read(self, request: Request, held: AsyncExitStack) -> bytes:
        content, is_large = bytearray(), False
        async for part in request.stream():
            content += part
            if len(content) > self._limits.max_body_bytes:
                raise RequestError(413, f"the body has more than {self._limits.max_body_bytes} bytes")
            if not is_large and len(content) > self._limits.large_body_bytes:
                is_large = True
                await held.enter_async_context(self._large)
        return bytes(content)


def _parse(content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise bad("the body is nested too deeply") from error
    # Bad UTF-8, no JSON, or a whole number of thousands of digits.
    except ValueError as error:
        raise bad(f"the body is no JSON: {error}"[:300]) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
