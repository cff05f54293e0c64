"""A request's bytes and its JSON, within limits: nothing is read or parsed beyond them."""

import asyncio
import json
from typing import Any, NoReturn

from fastapi import Request

from megatron_moe_grpo.serving.limits import Limits
from megatron_moe_grpo.serving.request_error import RequestError, bad


async def read_json_object(request: Request, limits: Limits) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        RequestError: too long, too slow, compressed, not UTF-8, no JSON, or no object.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestError(415, "compressed bodies are not read")
    try:
        content = await asyncio.wait_for(_read(request, limits.max_body_bytes), limits.max_body_s)
    except TimeoutError as error:
        raise RequestError(408, f"the body did not arrive within {limits.max_body_s:g} s") from error
    # Off the event loop: a body of many megabytes takes a while.
    value = await asyncio.to_thread(_parse, content)
    if not isinstance(value, dict):
        raise bad(f"the body is a JSON {type(value).__name__}, not an object")
    return value


async def _read(request: Request, max_bytes: int) -> bytes:
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > max_bytes:
            raise RequestError(413, f"the body has more than {max_bytes} bytes")
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
