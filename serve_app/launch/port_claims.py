"""Which ports the services of this machine have chosen, before anything listens on them.

Between the choice of a port and the first process that listens there lie seconds, and a second service that
starts meanwhile would choose the same. A claim is a socket in the abstract namespace, named by the port: the
kernel gives it to one process, and takes it back when that process ends, however it ends. Who is no service
of ours is not held off by it; that is what probing is for.
"""

from __future__ import annotations

import socket

__all__ = ["PortClaims"]


class PortClaims:
    """The ports that this process has claimed; they stay its own until `release`."""

    def __init__(self) -> None:
        self._sockets: dict[int, socket.socket] = {}

    def claim(self, port: int) -> bool:
        """Claim a port, or say that another service has; one's own may be claimed again."""
        if port in self._sockets:
            return True
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0tutti.port.{port}")
        except OSError:
            claim.close()
            return False
        self._sockets[port] = claim
        return True

    def release(self) -> None:
        """Give all back."""
        while self._sockets:
            self._sockets.popitem()[1].close()
