"""What orchestrators and replicas say to each other: msgpack, many messages a call."""

from __future__ import annotations

import msgspec

__all__ = [
    "NO_ATTEMPT",
    "AttemptKey",
    "Exchange",
    "Report",
    "Reports",
    "StepCall",
    "decode_exchange",
    "decode_reports",
    "encode",
]

AttemptKey = tuple[str, int, int, int]
"""(run id, step, item, attempt): names one execution."""
NO_ATTEMPT: AttemptKey = ("", -1, -1, 0)
"""Names none."""


class StepCall(msgspec.Struct, array_like=True):
    """An attempt handed to a replica.

    Attributes:
        inputs: Raw JSON, as `metadata`.
        deadline_at: Unix seconds.
        sent_at: Unix seconds. It tells a call that came twice from a new one with the same key: a store that
            lost its last moments lets an owner begin an attempt anew that the replica had already.
    """

    key: AttemptKey
    name: str
    capability: str
    inputs: bytes
    metadata: bytes
    tenant: str
    deadline_at: float
    sent_at: float = 0.0


class Exchange(msgspec.Struct, array_like=True):
    """One call to a replica: new work, what to stop, and how far its reports were received.

    Attributes:
        caller: The orchestrator.
        seen: Number up to which all reports were received.
        ack: Number of the last report whose effect is durable; up to it the replica may forget.
        again: A call was lost on the way: give out everything after `seen` once more.
    """

    caller: str
    seen: int
    ack: int
    calls: list[StepCall]
    stops: list[AttemptKey]
    again: bool = False


class Report(msgspec.Struct, array_like=True):
    """What became of an attempt.

    Attributes:
        seq: 1, 2, 3, … per caller.
        kind: "ok" (payload: raw JSON), "failed" (payload: JSON of Failure, number: seconds the other side
            asked to wait), "progress" (payload: message, number: 0 to 1), "stopped"; "moved" stands where
            one was that was asked for elsewhere.
    """

    seq: int
    kind: str
    key: AttemptKey
    payload: bytes = b""
    number: float = 0.0


class Reports(msgspec.Struct, array_like=True):
    """The answer to an Exchange."""

    reports: list[Report]


_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
decode_exchange = msgspec.msgpack.Decoder(Exchange).decode
decode_reports = msgspec.msgpack.Decoder(Reports).decode
