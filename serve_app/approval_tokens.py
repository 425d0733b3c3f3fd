"""Tokens with which somebody without a credential may answer one approval, once.

A token names the tenant and the Step that waits, signed; each visit of a state is a Step of its own, and a
Step is answered once, so nothing must be kept of the tokens given out.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import NamedTuple

from cluster.errors import Unauthenticated

__all__ = ["ApprovalTokens", "Waiting"]


class Waiting(NamedTuple):
    """What a token is for."""

    tenant: str
    step: str


class ApprovalTokens:
    """Makes and reads tokens.

    Args:
        secret: Signs them; "" makes none and takes none.
    """

    def __init__(self, secret: str) -> None:
        self._key = hashlib.sha256(b"tutti approval\0" + secret.encode()).digest() if secret else b""

    def make(self, job_id: str, waiting: Waiting) -> str | None:
        """Make the token for a Step that waits; None where there is no secret."""
        if not self._key:
            return None
        content = "\0".join(waiting).encode()
        return f"{base64.urlsafe_b64encode(content).decode().rstrip('=')}.{self._sign(job_id, content)}"

    def read(self, job_id: str, token: str) -> Waiting:
        """Say what a token is for.

        Raises:
            Unauthenticated: It is not one of ours, or another job's.
        """
        text, _, signature = token.partition(".")
        try:
            content = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            tenant, step = content.decode().split("\0")
        except (binascii.Error, ValueError):
            raise Unauthenticated("the approval token is not valid") from None
        expected = self._sign(job_id, content)
        if not self._key or not hmac.compare_digest(expected.encode(), signature.encode()):
            raise Unauthenticated("the approval token is not valid")
        return Waiting(tenant, step)

    def _sign(self, job_id: str, content: bytes) -> str:
        return hmac.new(self._key, job_id.encode() + b"\0" + content, hashlib.sha256).hexdigest()
