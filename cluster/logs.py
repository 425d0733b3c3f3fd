"""What a process of the service writes to its log, and how: one line a record, from the level that is set.

The service's own records and those of agents' code go through the same handler. It refuses to choose files:
lines go to stderr, which Ray keeps for each process.
"""

from __future__ import annotations

import logging
import sys

import structlog

__all__ = ["configure_logs"]

_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_CHATTY = ("asyncio", "grpc", "httpcore", "httpx", "numba", "PIL", "urllib3")
"""Libraries whose news below a warning are of no use to an operator."""


def configure_logs(level: str) -> None:
    """Send this process's records from a level on to stderr; a second call replaces the first.

    Args:
        level: debug, info, warning or error.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_LINE))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(number)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    structlog.configure(
        processors=[structlog.processors.format_exc_info, _as_line],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def _as_line(_logger: object, _method: str, fields: structlog.typing.EventDict) -> str:
    """Write `what happened key=value …`, and a stack trace below it."""
    what, trace = fields.pop("event", ""), fields.pop("exception", "")
    pairs = [f"{name}={value!r}" for name, value in fields.items()]
    line = " ".join([str(what), *pairs])
    # The standard library formats what it is given: a sign of per cent must stand for itself.
    return f"{line}\n{trace}" if trace else line
