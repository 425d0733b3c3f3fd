"""An orchestrator's line to one replica: natural batching, at most two calls in flight.

What becomes ready while calls are under way goes into the next one. One call always waits at the replica
while it holds attempts of ours; its return, at the latest after 5 s, is the replica's sign of life.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol

import msgspec

from actors.handles import ReplicaGone, ReplicaUnreachable, check_alive, exchange_with, own_node_id
from actors.local_socket import SocketClient
from actors.messages import AttemptKey, Exchange, Report, StepCall, decode_reports, encode
from cluster.scheduling.affinity import Affinity

if TYPE_CHECKING:
    from actors.pool_table import ReplicaEntry

__all__ = ["ALONE_S", "LinkOwner", "ReplicaLink"]

_MAX_IN_FLIGHT = 2
_SILENCE_S = 30.0
_UNREACHABLE_PAUSE_S = 0.5
_KEPT_S = 15.0  # a takeover is over by then
ALONE_S = 60.0
"""How long a replica waits to be empty for a suspect, and how long a suspect then has it for itself."""


class LinkOwner(Protocol):
    """Who is told what comes over the line."""

    def on_reports(self, link: ReplicaLink, reports: list[Report]) -> None:
        """Take reports in; the owner says `acknowledge` when their effect is durable."""

    def on_replica_lost(self, link: ReplicaLink, reason: str) -> None:
        """The replica is gone with all it held."""

    def on_replica_stuck(self, link: ReplicaLink, reason: str) -> None:
        """The replica does not answer or does not stop what it was told to stop: it should be killed."""


class ReplicaLink:
    """State of the line.

    Attributes:
        entry: The replica as the scheduler describes it.
        held: Attempts there that are ours, or have a slot kept, to the instant of it (monotonic seconds).
        stopping: Attempts told to stop, to the instant of it.
        was_replaced: Whether it was asked to be killed; what it holds is not to blame.
        is_silent: Whether it was for not answering: what it holds may block it, and is to blame.
        ended_at: When an attempt ended there last (monotonic seconds); minus infinity before the first.
        exclusive: Whether one suspect attempt has the replica for itself.
        suspect: That attempt, also while others have joined it; None where there is none.
        alone_since: Since when it empties for a suspect, or a suspect has it for itself (monotonic seconds).
        slots: How many attempts this orchestrator may have there.
        affinity: How far it may go past others for the model it has loaded; None where it has none.
    """

    def __init__(self, entry: ReplicaEntry, caller: str, owner: LinkOwner) -> None:
        self.entry = entry
        self.slots = entry.slots
        self.held: dict[AttemptKey, float] = {}
        self.stopping: dict[AttemptKey, float] = {}
        self.exclusive = False
        self.suspect: AttemptKey | None = None
        self.alone_since = 0.0
        self.affinity: Affinity | None = None
        self.lost = False
        self.was_replaced = False
        self.is_silent = False
        self.ended_at = -math.inf
        self._caller = caller
        self._owner = owner
        self._there: set[AttemptKey] = set()  # sent or adopted: what a waiting call can bring news of
        self._calls: list[StepCall] = []
        self._stops: list[AttemptKey] = []
        self._seen = 0
        self._ahead: set[int] = set()
        self._ack = 0
        self._kept: dict[int, float] = {}
        self._again = False
        self._in_flight = 0
        is_near = entry.socket is not None and entry.node_id == own_node_id()
        self._socket = SocketClient(entry.socket) if is_near and entry.socket is not None else None
        self._wanted = asyncio.Event()
        self._last_answer_at = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pump = asyncio.get_running_loop().create_task(self._run())

    @property
    def replica_id(self) -> str:
        """The replica's id, the `agent_id` clients see."""
        return self.entry.replica_id

    @property
    def seen(self) -> int:
        """Number up to which all reports were received."""
        return self._seen

    @property
    def num_free(self) -> int:
        """Free slots: what is stopping still occupies its own."""
        return (
            0
            if self.lost or self.exclusive or self.was_replaced
            else self.slots - len(self.held) - len(self.stopping)
        )

    @property
    def model(self) -> str:
        """The model it has loaded as far as we know, "" where none."""
        return self.affinity.lane if self.affinity is not None else ""

    def hold_model(self, model: str) -> None:
        """Note the model of what it runs: it is loaded from then on, and no other."""
        if model and (self.affinity is None or self.affinity.lane != model):
            self.affinity = Affinity(model)

    def reserve(self, key: AttemptKey) -> None:
        """Take a slot; the call follows after the commit."""
        self.held[key] = time.monotonic()

    def send(self, call: StepCall) -> None:
        """Hand an attempt over with the next call."""
        if call.key in self.held:
            self._calls.append(call)
            self._wanted.set()

    def stop(self, key: AttemptKey) -> None:
        """Stop an attempt; its slot is free when the replica says so."""
        if self.held.pop(key, None) is None:
            return
        self.stopping[key] = time.monotonic()
        self._there.discard(key)
        self._stops.append(key)
        self._wanted.set()

    def adopt(self, key: AttemptKey) -> None:
        """Hold an attempt that the replica already has."""
        self.held[key] = time.monotonic()
        self._there.add(key)
        self._wanted.set()

    def give_up(self, keys: Collection[AttemptKey]) -> None:
        """Leave attempts to another owner, who asks for them."""
        for key in keys:
            self.held.pop(key, None)
            self._there.discard(key)

    def acknowledge(self, seq: int) -> None:
        """Let the replica forget reports up to `seq`."""
        self._ack = max(self._ack, seq)

    def is_free_for_suspect(self, now: float) -> bool:
        """Whether it is empty, or was waited for long enough (`now`: monotonic seconds)."""
        if self.suspect is not None or self.num_free <= 0:
            return False
        return not (self.held or self.stopping) or now - self.alone_since > ALONE_S

    def isolate(self, suspect: AttemptKey, now: float) -> None:
        """Leave the replica to a suspect for a while."""
        self.suspect, self.exclusive, self.alone_since = suspect, True, now

    def _look_after_suspect(self) -> None:
        if self.suspect is not None and self.suspect not in self.held and self.suspect not in self.stopping:
            self.suspect, self.exclusive = None, False

    def is_to_blame(self, key: AttemptKey) -> bool:
        """Whether an attempt counts a crash when the replica dies: beside a suspect nobody else does."""
        if self.was_replaced and not self.is_silent:
            return False
        return self.suspect is None or self.suspect == key

    def keep(self, seq: int) -> None:
        """Do not let the replica forget a report yet: its Run has another owner, who will ask for it."""
        self._kept[seq] = time.monotonic() + _KEPT_S

    def _ack_now(self) -> int:
        now = time.monotonic()
        for seq in [seq for seq, until in self._kept.items() if until <= now]:
            del self._kept[seq]
        return min(self._ack, self._seen, min(self._kept, default=self._seen + 1) - 1)

    def close(self) -> None:
        """Give the line up; the replica keeps what it holds for whoever adopts it."""
        self.lost = True
        self._pump.cancel()
        if self._socket is not None:
            self._socket.close()
        for task in self._tasks:
            task.cancel()

    async def _run(self) -> None:
        while not self.lost:
            await self._wanted.wait()
            self._wanted.clear()
            has_news = bool(self._calls or self._stops)
            if self._in_flight >= _MAX_IN_FLIGHT or (self._in_flight and not has_news):
                continue
            if not (has_news or self._there or self.stopping):
                continue
            calls, self._calls = self._calls, []
            self._there.update([call.key for call in calls])
            stops, self._stops = self._stops, []
            ack = self._ack_now()
            message = Exchange(self._caller, self._seen, ack, calls, stops, self._again)
            self._again = False
            self._in_flight += 1
            if self._in_flight == 1:
                self._last_answer_at = time.monotonic()
            task = asyncio.get_running_loop().create_task(self._exchange(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, message: bytes) -> bytes:
        """Take the short way where there is one; where it breaks, Ray tells whether the replica lives."""
        if self._socket is None:
            return await exchange_with(self.entry.handle, message)
        try:
            return await self._socket.exchange(message)
        except OSError as error:
            self._socket.close()
            self._socket = None
            await check_alive(self.entry.handle)
            raise ReplicaUnreachable(str(error)) from error

    async def _exchange(self, message: Exchange) -> None:
        try:
            answer = await self._carry(encode(message))
        except ReplicaGone as error:
            self.was_replaced = self.was_replaced or error.on_purpose
            self._lose(str(error))
            return
        except ReplicaUnreachable:
            # What was sent may or may not have arrived: the replica ignores what comes twice.
            self._calls = [call for call in message.calls if call.key in self.held] + self._calls
            self._stops = message.stops + self._stops
            self._again = True
            await asyncio.sleep(_UNREACHABLE_PAUSE_S)
            self._in_flight -= 1
            self._wanted.set()
            return
        self._in_flight -= 1
        try:
            told = decode_reports(answer).reports
        except msgspec.MsgspecError as error:
            self._despair(f"it answers what cannot be read: {error}")
            told = []
        self._last_answer_at = time.monotonic()
        reports = [report for report in told if self._is_new(report.seq)]
        if reports:
            for report in reports:
                if report.kind != "progress":
                    self.ended_at = self._last_answer_at
                    self.held.pop(report.key, None)
                    self._there.discard(report.key)
                    self.stopping.pop(report.key, None)
            self._look_after_suspect()
            self._owner.on_reports(self, reports)
        self._wanted.set()

    def _is_new(self, seq: int) -> bool:
        """Note a report; two calls in flight may answer out of order."""
        if seq <= self._seen or seq in self._ahead:
            return False
        self._ahead.add(seq)
        while self._seen + 1 in self._ahead:
            self._seen += 1
            self._ahead.discard(self._seen)
        return True

    def _lose(self, reason: str) -> None:
        if not self.lost:
            self.lost = True
            self._pump.cancel()
            if self._socket is not None:
                self._socket.close()
            self._owner.on_replica_lost(self, reason)

    def _despair(self, reason: str) -> None:
        """Have the replica killed; whatever makes it so is among what it holds."""
        self.is_silent = True
        self._owner.on_replica_stuck(self, reason)

    def check(self, now: float, stop_grace_s: float) -> None:
        """Look for silence and for attempts that do not stop (`now`: monotonic seconds)."""
        if self.lost:
            return
        self._look_after_suspect()
        if self.exclusive and now - self.alone_since > ALONE_S:
            self.exclusive = False
        if self._in_flight and now - self._last_answer_at > _SILENCE_S:
            self._despair(f"silent for {_SILENCE_S:g} s")
        elif self.stopping and now - min(self.stopping.values()) > stop_grace_s:
            self._owner.on_replica_stuck(self, f"did not stop within {stop_grace_s:g} s")
