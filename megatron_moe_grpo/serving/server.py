"""The process: application, socket, ready line, orderly end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from socket import socket

import uvicorn
from fastapi import FastAPI

from megatron_moe_grpo.serving.app import make_app
from megatron_moe_grpo.serving.endpoints import Served

MAX_CONNECTIONS = 2048
KEEP_ALIVE_S, LAST_ANSWERS_S = 30, 5
MAX_HEADER_BYTES = 16 << 10


def serve(served: Served, host: str, port: int) -> None:
    """Answers until the process is told to stop; says one line when it begins.

    Args:
        port: 0: any free one, which the line names.
    """
    app = make_app(served)
    app.router.lifespan_context = _engine_lifespan(served)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_graceful_shutdown=LAST_ANSWERS_S,
    )
    _AnnouncedServer(config, served.name).run()


def _engine_lifespan(served: Served):
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        # While the loop still runs: the engine tells what is under way that it ends.
        await asyncio.to_thread(served.engine.close)

    return lifespan


class _AnnouncedServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, name: str):
        super().__init__(config)
        self._name = name

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            print(f"serving {self._name} on http://{host}:{port}", flush=True)
