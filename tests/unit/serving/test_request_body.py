"""Bodies: what is refused while it arrives, and how many large ones are in memory together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from fastapi import Request

from megatron_moe_grpo.serving.limits import Limits
from megatron_moe_grpo.serving.request_body import BodyReader
from megatron_moe_grpo.serving.request_error import RequestError

LIMITS = Limits(max_body_bytes=1_000, max_body_s=0.2, max_large_bodies=2, large_body_bytes=100)


def request_of(parts: list[bytes], pause_s: float = 0.0, encoding: str | None = None) -> Request:
    async def source() -> AsyncIterator[dict[str, Any]]:
        for index, part in enumerate(parts):
            await asyncio.sleep(pause_s)
            yield {"type": "http.request", "body": part, "more_body": index < len(parts) - 1}

    messages = source()
    headers = [] if encoding is None else [(b"content-encoding", encoding.encode())]
    return Request({"type": "http", "method": "POST", "headers": headers}, lambda: anext(messages))


def read(request: Request) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        async with AsyncExitStack() as held:
            return await BodyReader(LIMITS).json_object(request, held)

    return asyncio.run(run())


def test_a_body_in_parts_is_one_object() -> None:
    assert read(request_of([b'{"a": ', b"[1, ", b"2]}"])) == {"a": [1, 2]}


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        (request_of([b"x" * 600, b"x" * 600]), 413, "more than 1000 bytes"),
        (request_of([b"{", b"}"], pause_s=0.15), 408, "within 0.2 s"),
        (request_of([b"{}"], encoding="gzip"), 415, "compressed"),
        (request_of([b"[1]"]), 400, "JSON list"),
        (request_of([b""]), 400, "no JSON"),
        (request_of([b"\xff{}"]), 400, "no JSON"),
        (request_of([b'{"a": NaN}']), 400, "NaN"),
        (request_of([b'{"a": ' + b"1" * 900 + b"}"]), None, ""),
    ],
)
def test_bodies_that_are_refused(request_: Request, status: int | None, message: str) -> None:
    if status is None:
        assert read(request_)["a"] == int("1" * 900)
        return
    with pytest.raises(RequestError, match=message) as caught:
        read(request_)
    assert caught.value.status == status


def test_nesting_is_refused() -> None:
    deep = Limits(max_body_bytes=10**6)

    async def run() -> None:
        async with AsyncExitStack() as held:
            await BodyReader(deep).json_object(request_of([b"[" * 200_000]), held)

    with pytest.raises(RequestError, match="nested too deeply"):
        asyncio.run(run())


def test_large_bodies_wait_for_each_other_and_small_ones_do_not() -> None:
    async def run() -> None:
        reader = BodyReader(LIMITS)
        large = b'{"a": "' + b"x" * 200 + b'"}'
        async with AsyncExitStack() as first, AsyncExitStack() as second, AsyncExitStack() as third:
            await reader.json_object(request_of([large]), first)
            await reader.json_object(request_of([large]), second)
            assert await reader.json_object(request_of([b"{}"]), third) == {}
            with pytest.raises(RequestError, match="within"):
                await reader.json_object(request_of([large]), third)
            await first.aclose()
            assert await reader.json_object(request_of([large]), third)

    asyncio.run(run())
