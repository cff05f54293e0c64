"""The application: addresses, the key that opens them, and errors in OpenAI's form."""

import hmac
import time
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

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
    _guard(app, served.api_key, traffic)
    return app


def _guard(app: FastAPI, api_key: str | None, traffic: Traffic) -> None:
    """Looks at the key before anything else, and counts every answer."""
    known_paths = {route.path for route in app.routes}

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        started_s = time.perf_counter()
        if api_key is None or request.url.path in OPEN_PATHS or _has_key(request, api_key):
            response = await call_next(request)
        else:
            response = _refusal(RequestError(401, "the API key is missing or wrong", code="invalid_api_key"))
        # Labels of our own only: a client must not be able to make new ones.
        endpoint = request.url.path if request.url.path in known_paths else "other"
        traffic.requests.labels(endpoint, str(response.status_code)).inc()
        traffic.duration_s.labels(endpoint).observe(time.perf_counter() - started_s)
        return response


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
