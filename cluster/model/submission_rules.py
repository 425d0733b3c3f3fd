"""What must hold of a Submission beside its Plan, whichever way it comes: one place for edge and drivers."""

from __future__ import annotations

import re
from typing import Protocol

import orjson

from cluster.errors import InvalidInput, PayloadTooLarge
from cluster.model.blob_reference import RESERVED_KEY, has_reserved_key
from cluster.model.plan import Json
from cluster.model.strict_json import encode_strictly

__all__ = [
    "SubmissionFields",
    "check_metadata_size",
    "check_priority",
    "check_submission",
    "check_tenant",
    "encode_value",
    "is_tenant",
]

_MAX_AFTER = 1000
_RUN_ID = re.compile(r"[A-Za-z0-9_.:-]{1,200}\Z")
_TENANT = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_RESERVED = f'"{RESERVED_KEY}"'.encode()
_MAX_TIMEOUT_S = 10 * 365 * 86_400.0


class SubmissionFields(Protocol):
    """See Submission; `run_id` is None where the id will be one of ours."""

    @property
    def run_id(self) -> str | None:
        """The id."""

    @property
    def priority(self) -> int:
        """0 to 100."""

    @property
    def timeout_s(self) -> float | None:
        """Seconds."""

    @property
    def after(self) -> tuple[str, ...]:
        """Ids of other Runs."""


def check_submission(fields: SubmissionFields) -> None:
    """Check the numbers and ids.

    Raises:
        InvalidInput: `details["field"]` names the first that cannot be used.
    """
    if fields.run_id is not None and not _RUN_ID.match(fields.run_id):
        raise InvalidInput("an id must match [A-Za-z0-9_.:-]{1,200}", field="run_id")
    check_priority(fields.priority)
    if fields.timeout_s is not None and not 0 < fields.timeout_s <= _MAX_TIMEOUT_S:
        raise InvalidInput(f"the timeout must be above 0 and at most {_MAX_TIMEOUT_S:.0f} s", field="timeout")
    if len(fields.after) > _MAX_AFTER:
        raise InvalidInput(f"after: at most {_MAX_AFTER} ids", field="after")
    for other in fields.after:
        if not _RUN_ID.match(other) or other == fields.run_id:
            raise InvalidInput(f"after: {other[:200]!r} is not the id of another Run", field="after")


def check_priority(priority: int) -> None:
    """Check a priority.

    Raises:
        InvalidInput: It is not 0 to 100.
    """
    if not 0 <= priority <= 100:
        raise InvalidInput("priority: must be 0 to 100", field="priority")


def is_tenant(name: str) -> bool:
    """Say whether this can be a tenant's name: it becomes part of keys, and of texts for people."""
    return _TENANT.match(name) is not None


def check_tenant(name: str) -> None:
    """Check a tenant's name.

    Raises:
        InvalidInput: It cannot be one.
    """
    if not is_tenant(name):
        raise InvalidInput("tenant: must match [A-Za-z0-9_.-]{1,64}", field="tenant")


def encode_value(value: Json, field: str, *, sort_keys: bool = False) -> bytes:
    """Encode inputs or metadata, checked: a client hands in plain JSON, and no references to blobs: only the
    service makes those, since a client's own could name what another tenant has stored.

    Args:
        value: As the client gave it.
        field: Its name, for errors.
        sort_keys: Whether equal objects get equal bytes.

    Raises:
        InvalidInput: It is no JSON, holds NaN or infinity, or the key that is reserved for references.
    """
    try:
        raw = encode_strictly(value, sort_keys=sort_keys)
    except TypeError as error:
        raise InvalidInput(f"{field}: not JSON ({error})", field=field) from None
    if _RESERVED in raw and has_reserved_key(orjson.loads(raw)):
        raise InvalidInput(f"{field}: {RESERVED_KEY} is reserved", field=field)
    return raw


def check_metadata_size(raw: bytes, limit_bytes: int) -> None:
    """Check encoded metadata.

    Raises:
        PayloadTooLarge: It does not fit inline.
    """
    if len(raw) > limit_bytes:
        raise PayloadTooLarge(
            f"metadata is over the limit of {limit_bytes} bytes", limit_bytes=limit_bytes, field="metadata"
        )
