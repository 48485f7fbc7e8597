"""How the server refuses a request: one exception, in the envelope that OpenAI's clients understand."""

from __future__ import annotations

from typing import Any

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
}


class RefusedError(Exception):
    """A request that the server refuses.

    Args:
        status: HTTP status; 4xx is for the client to fix, 503 and 504 can be retried.
        code: a short name that programs can compare.
        message: what was found, what was expected, what to do.
        param: the field of the request that it is about.
        retry_after_s: when to try again.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """`{"error": {message, type, param, code}}`."""
        default = "invalid_request_error" if self.status < 500 else "server_error"
        kind = _TYPES.get(self.status, default)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """`Retry-After` and `WWW-Authenticate` where they apply."""
        headers = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(self.retry_after_s)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


def busy(retry_after_s: int = 1) -> RefusedError:
    """429: the queue is full."""
    return RefusedError(
        429,
        "queue_full",
        "The server has as many requests as it may hold. Try again in a moment.",
        retry_after_s=retry_after_s,
    )
