"""A local endpoint that answers as it is told, for tests of what asks it."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, bytes]
"""Status and body."""


def chat_reply(text: object, finish_reason: str = "stop") -> Reply:
    """One choice that says `text`."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return 200, json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


class ChatServer(ThreadingHTTPServer):
    """Remembers every request: (path, Authorization, body)."""

    daemon_threads = True

    def __init__(self, reply: Callable[[dict[str, Any]], Reply], models: list[str]):
        self.requests: list[tuple[str, str | None, dict[str, Any]]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self.reply, self.models = reply, models
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, key: str | None, body: dict[str, Any]) -> Reply:
        with self._lock:
            self.requests.append((path, key, body))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if path == "/v1/models":
                return 200, json.dumps({"data": [{"id": name} for name in self.models]}).encode()
            return self.reply(body)
        finally:
            with self._lock:
                self._at_once -= 1


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_GET(self) -> None:
        self._send(self.server.answer(self.path, self.headers.get("Authorization"), {}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(self.server.answer(self.path, self.headers.get("Authorization"), body))

    def _send(self, reply: Reply) -> None:
        status, content = reply
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@contextmanager
def chat_server(reply: Callable[[dict[str, Any]], Reply], models: tuple[str, ...] = ("tiny",)) -> Iterator[ChatServer]:
    """A server that runs while the block does."""
    with ChatServer(reply, list(models)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
