"""What an exception says in one line that a person can use.

What fails inside an actor comes with colours, its whereabouts and a traceback around the one line that
matters. This module refuses to decide what to do about it.
"""

from __future__ import annotations

import re

__all__ = ["cause_line", "first_line"]

_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_TRACED = re.compile(r'^ +File "', re.MULTILINE)
_OUR_CLASS = re.compile(r"^cluster\.errors\.\w+: ")
_ALERT = "[ALERT]"
"""Before what stopped HAProxy; its notices and warnings come first."""
_RAISED = re.compile(r"[A-Za-z_][\w.]*(: .*)?")


def first_line(error: BaseException) -> str:
    """Say in one line what went wrong; never empty."""
    # What was raised inside an actor begins with the actor's whereabouts; the reason is its cause.
    cause = getattr(error, "cause", None)
    told = cause if isinstance(cause, BaseException) else error
    return cause_line(str(told)) or type(told).__name__


def cause_line(text: str) -> str:
    """Take the line that tells the cause out of a text: the last one raised where there is a traceback, else
    the first; empty where the text is.
    """
    text = _COLOUR.sub("", text).strip()
    if alerts := [line for line in text.splitlines() if _ALERT in line]:
        return alerts[-1].partition(_ALERT)[2].strip()
    if _TRACED.search(text):
        raised = [line for line in text[_last_trace(text) :].splitlines() if _RAISED.fullmatch(line)]
        if raised:
            return _OUR_CLASS.sub("", raised[0])
    return text.splitlines()[0].strip() if text else ""


def _last_trace(text: str) -> int:
    """Where the last frame of the last traceback begins."""
    return max(found.start() for found in _TRACED.finditer(text))
