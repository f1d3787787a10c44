"""Errors that only HTTP knows (404, 405, 413, ...) and the reply that any error becomes.

The body is OpenAI's: {"error": {"message", "type", "param", "code"}}. Errors of the other layers
carry no status: igllama.py's table gives them one.
"""

from __future__ import annotations

import json
from typing import NamedTuple

Fields = tuple[tuple[str, str], ...]  # header fields in order


class Reply(NamedTuple):
    """An error as it goes to the client."""

    status: int
    body: dict[str, object]
    headers: Fields = ()


class HttpProblem(Exception):
    """A request that this layer refuses. `str(problem)` is a sentence for a person."""

    def __init__(
        self,
        status: int,
        message: str,
        type: str = "",
        code: str | None = None,
        param: str | None = None,
        headers: Fields = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type or TYPE_OF.get(status) or _type_of_class(status)
        self.code = code or CODE_OF.get(status)
        self.param = param
        self.headers = headers


TYPE_OF = {401: "authentication_error", 403: "permission_error", 503: "overloaded_error"}

CODE_OF = {
    400: "bad_request",
    401: "invalid_api_key",
    403: "forbidden",
    404: "unknown_url",
    405: "method_not_allowed",
    408: "request_timeout",
    411: "length_required",
    413: "request_too_large",
    414: "uri_too_long",
    415: "unsupported_media_type",
    417: "expectation_failed",
    431: "headers_too_large",
    500: "internal_error",
    501: "not_implemented",
    503: "overloaded",
    505: "http_version_not_supported",
}


def _type_of_class(status: int) -> str:
    return "invalid_request_error" if status < 500 else "server_error"


def bad_request(message: str) -> HttpProblem:
    return HttpProblem(400, message)


def error_body(message: str, type: str, code: str | None, param: str | None) -> dict[str, object]:
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def reply_of(problem: HttpProblem) -> Reply:
    body = error_body(problem.message, problem.type, problem.code, problem.param)
    return Reply(problem.status, body, problem.headers)


def internal_error() -> Reply:
    """What a client is told of our own bugs: nothing but the fact."""
    return reply_of(HttpProblem(500, "the server failed on this request; its log says more"))


def default_describe(error: BaseException) -> Reply:
    """Describe this layer's own errors; all others are bugs. igllama.py injects a wider one."""
    return reply_of(error) if isinstance(error, HttpProblem) else internal_error()


def to_json(value: object) -> bytes:
    """Return compact UTF-8 JSON; NaN and Infinity are our bugs, lone surrogates become '?'."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")
