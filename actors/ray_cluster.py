"""Attaching this process to a Ray cluster that runs already, or saying in one line why it cannot be done.

`ray.init` goes on trying for 20 seconds, whether nobody is there or the token is missing, and Ray looks for
its token only where it finds the cluster by itself. Here the cluster is asked first, as Ray's own processes
ask each other. It starts no cluster.
"""

from __future__ import annotations

import logging
from typing import Any

import grpc
import ray
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available as use_token_if_there_is_one,
)
from ray._private.grpc_utils import init_grpc_channel
from ray._private.services import canonicalize_bootstrap_address

from cluster.errors import Unavailable

__all__ = ["attach", "check_attached", "check_cluster"]

_ALIVE_METHOD = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_ID_METHOD = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_ANSWER_S = 3.0


def attach(address: str | None = None, **options: Any) -> str:
    """Attach this process to a cluster, with Ray's token where it asks for one.

    Args:
        address: A node's `host:port` of Ray's control store; None finds a cluster as `ray.init` does:
            `RAY_ADDRESS`, or one on this machine.
        options: Further arguments of `ray.init`.

    Returns:
        The address, `host:port`.

    Raises:
        Unavailable: There is no cluster that lets us in; one line, after a few seconds at most.
    """
    found = _find() if address in (None, "auto") else str(address)
    check_cluster(found)
    try:
        ray.init(address=found, **options)
    except (ConnectionError, OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise Unavailable(f"the Ray cluster at {found} cannot be joined: {_first_line(error)}") from error
    return str(ray.get_runtime_context().gcs_address)


def check_attached(address: str) -> None:
    """Make sure that the cluster this process is attached to is the one at an address, by whatever name.

    Args:
        address: `host:port`.

    Raises:
        Unavailable: It is another, or nobody answers there.
    """
    own = str(ray.get_runtime_context().gcs_address)
    if address == own:
        return
    check_cluster(address)
    answers = [_ask(each, _ANSWER_S, _ID_METHOD) for each in (own, address)]
    if answers[0] != answers[1] or answers[0][0] is not grpc.StatusCode.OK:
        raise Unavailable(f"this process is attached to the Ray cluster at {own}, and {address} is another")


def check_cluster(address: str, timeout_s: float = _ANSWER_S) -> None:
    """Ask a cluster's control store whether it lives; from then on this process uses Ray's token if it must.

    Args:
        address: `host:port`.
        timeout_s: Limit for the answer, > 0.

    Raises:
        Unavailable: Nobody answers there, it is no Ray, or it does not take our token.
    """
    status, _ = _ask(address, timeout_s)
    if status is grpc.StatusCode.UNAUTHENTICATED and _use_token():
        status, _ = _ask(address, timeout_s)
    if status is grpc.StatusCode.UNAUTHENTICATED:
        raise Unavailable(
            f"the Ray cluster at {address} asks for its token (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH)"
        )
    if status is not grpc.StatusCode.OK:
        raise Unavailable(f"no Ray cluster answers at {address}")


def _find() -> str:
    try:
        found = canonicalize_bootstrap_address("auto")
    except (ConnectionError, ValueError, OSError) as error:
        raise Unavailable(f"no Ray cluster found: {_first_line(error)}") from None
    if found is None:
        raise Unavailable("no Ray cluster found: RAY_ADDRESS says local")
    return str(found)


def _ask(address: str, timeout_s: float, method: str = _ALIVE_METHOD) -> tuple[grpc.StatusCode, bytes]:
    """Call a method without arguments; its answer is not decoded."""
    with init_grpc_channel(address) as channel:
        call = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
        try:
            return grpc.StatusCode.OK, bytes(call(b"", timeout=timeout_s))
        except grpc.RpcError as error:
            return error.code(), b""


def _use_token() -> bool:
    """Use Ray's token unless RAY_AUTH_MODE forbids it; whether there is one."""
    log = logging.getLogger("ray._private.authentication.authentication_token_setup")
    # It would tell every driver how to switch its protection off.
    log.addFilter(_is_no_advice)
    try:
        return bool(use_token_if_there_is_one(warn_if_disabled=False))
    finally:
        log.removeFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
