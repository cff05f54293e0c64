"""What a client did wrong, as an HTTP status and OpenAI's error object."""

from typing import Any


class RequestError(Exception):
    """A request that is refused; everything in it is shown to the client."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """OpenAI's form."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad(message: str, param: str | None = None) -> RequestError:
    """400."""
    return RequestError(400, message, param=param)
