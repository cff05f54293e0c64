"""Clients that go away, send slowly, or come in crowds: others do not notice."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from served_folders import RunningServer, ask

NUM_SLOW, NUM_PARALLEL = 100, 300
# More tokens than the tiny model decodes in some seconds: 96 sequences, 6 at a time.
LONG = ask("How many?", max_tokens=200, temperature=1.0, n=16)


def gauge(server: httpx.Client, name: str) -> float:
    lines = server.get("/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"moe_grpo_{name}_sequences "))


def idle_within(server: httpx.Client, limit_s: float) -> float:
    """Seconds until nothing is decoded any more."""
    started_s = time.monotonic()
    while gauge(server, "active") + gauge(server, "waiting") > 0:
        assert time.monotonic() - started_s < limit_s, "the engine still works for clients that have gone"
        time.sleep(0.02)
    return time.monotonic() - started_s


def raw_request(server: httpx.Client, body: dict) -> socket.socket:
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    connection = socket.create_connection((server.base_url.host, server.base_url.port), timeout=30)
    connection.sendall(head.encode() + content)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_places(server: httpx.Client, stream: bool) -> None:
    connections = [raw_request(server, LONG | {"stream": stream}) for _ in range(6)]
    while gauge(server, "active") < 6 or gauge(server, "waiting") < 60:
        time.sleep(0.01)
    for connection in connections:
        connection.close()
    # All of it takes some 10 s; measured after leaving: 0.3 s.
    idle_within(server, limit_s=3.0)
    assert server.post("/v1/chat/completions", json=ask("x")).status_code == 200


@pytest.fixture
def slow_clients(server: httpx.Client) -> Iterator[list[socket.socket]]:
    """Connections that never finish their first line, their headers or their body."""
    starts = (b"POST /v1/chat", b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nX-A: ")
    body = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\nContent-Length: 99\r\n\r\n{"
    )
    connections = []
    for number in range(NUM_SLOW):
        connection = socket.create_connection((server.base_url.host, server.base_url.port), timeout=30)
        connection.sendall((*starts, body)[number % 3])
        connections.append(connection)
    yield connections
    for connection in connections:
        connection.close()


def test_slow_clients_keep_nobody_waiting(server: httpx.Client, slow_clients: list[socket.socket]) -> None:
    started_s = time.monotonic()
    assert server.get("/health").status_code == 200
    assert server.post("/v1/chat/completions", json=ask("x", max_tokens=1)).status_code == 200
    # Measured: 0.02 s.
    assert time.monotonic() - started_s < 2.0


def test_a_crowd_is_answered_or_told_to_come_again(running_server: RunningServer) -> None:
    server = running_server.client

    async def crowd() -> list[int]:
        limits = httpx.Limits(max_connections=NUM_PARALLEL)
        async with httpx.AsyncClient(
            base_url=server.base_url, headers=server.headers, timeout=120, limits=limits, trust_env=False
        ) as client:
            body = ask("x", max_tokens=1, n=6)
            requests = (client.post("/v1/chat/completions", json=body) for _ in range(NUM_PARALLEL))
            return [response.status_code for response in await asyncio.gather(*requests)]

    statuses = asyncio.run(crowd())
    # 1,800 sequences of which 1,024 may wait.
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) > NUM_PARALLEL // 3
    assert server.post("/v1/chat/completions", json=ask("x")).status_code == 200


def test_headers_have_a_limit(server: httpx.Client) -> None:
    # The server says no and hangs up; who is still sending sees the connection break.
    with contextlib.suppress(httpx.TransportError):
        response = httpx.get(f"{server.base_url}/health", headers={"X-A": "x" * 300_000})
        assert response.status_code in (400, 431)
    assert server.get("/health").status_code == 200
