"""The application: addresses, the key that opens them, and errors in OpenAI's form."""

import hmac
import time

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from megatron_moe_grpo.serving.endpoints import Endpoints, Served
from megatron_moe_grpo.serving.request_error import RequestError
from megatron_moe_grpo.serving.traffic import Traffic

OPEN_PATHS = ("/health", "/v1/health/ready")


def make_app(served: Served) -> FastAPI:
    """The application; its documentation pages are off, as each one is an address more."""
    app = FastAPI(title="megatron_moe_grpo", docs_url=None, redoc_url=None, openapi_url=None)
    traffic = Traffic(served.engine)
    endpoints = Endpoints(served, traffic)
    for path in OPEN_PATHS:
        app.get(path)(endpoints.health)
    app.get("/metrics")(endpoints.metrics)
    app.get("/v1/models")(endpoints.models)
    app.post("/v1/chat/completions")(endpoints.chat)
    app.post("/v1/completions")(endpoints.complete)
    _answer_errors(app)
    known_paths = frozenset(route.path for route in app.routes)
    app.add_middleware(Guard, api_key=served.api_key, traffic=traffic, known_paths=known_paths)
    return app


class Guard:
    """Looks at the key before anything else, and counts every answer.

    Plain ASGI: Starlette's own middleware class stands between a request and the news that its client has gone.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, traffic: Traffic, known_paths: frozenset[str]):
        self._app, self._api_key, self._traffic, self._known_paths = app, api_key, traffic, known_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s, status = time.perf_counter(), "none"

        async def counted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        is_open = self._api_key is None or scope["path"] in OPEN_PATHS or _has_key(Request(scope), self._api_key)
        refusal = _refusal(RequestError(401, "the API key is missing or wrong", code="invalid_api_key"))
        try:
            await (self._app if is_open else refusal)(scope, receive, counted_send)
        finally:
            # Labels of our own only: a client must not be able to make new ones.
            endpoint = scope["path"] if scope["path"] in self._known_paths else "other"
            self._traffic.requests.labels(endpoint, status).inc()
            self._traffic.duration_s.labels(endpoint).observe(time.perf_counter() - started_s)


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refuse(request: Request, error: RequestError) -> Response:
        return _refusal(error)

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def unknown(request: Request, error: Exception) -> Response:
        return _refusal(RequestError(404, f"there is no {request.method} {request.url.path}"[:200]))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return _refusal(RequestError(500, f"the server failed: {type(error).__name__}"))


def _has_key(request: Request, api_key: str) -> bool:
    sent = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    return hmac.compare_digest(sent.encode(), api_key.encode())


def _refusal(error: RequestError) -> Response:
    headers = {"Retry-After": "1"} if error.status == 429 else None
    return JSONResponse(error.body(), error.status, headers)
