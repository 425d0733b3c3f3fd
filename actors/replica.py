"""The actor that runs agents: one replica of a pool.

Orchestrators exchange batches with it: work goes in, reports come out as they are made, so that a slow Step
never delays
a fast one of its batch. A report is kept until its effect is durable; a call that was lost on the way loses
nothing.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import ray

from actors.agent import declaration_of
from actors.device_trust import distrust_of, read_devices
from actors.execution import AttemptContext, Host, execute, failure_of
from actors.local_socket import SocketAddress, SocketServer
from actors.messages import (
    NO_ATTEMPT,
    AttemptKey,
    Report,
    Reports,
    StepCall,
    decode_exchange,
    encode,
)
from cluster.errors import FailureCode
from cluster.model.view import Failure
from cluster.store.blobs import BlobStore

__all__ = ["Replica", "ReplicaConfig"]

_HEARTBEAT_S = 5.0
_CALLER_SILENCE_S = 60.0
_DEVICE_PATIENCE_S = 10.0
_DEVICE_PAUSE_S = 0.5
_FINAL = frozenset({"ok", "failed"})
_failures = msgspec.json.Encoder()


class ReplicaConfig(NamedTuple):
    """What a replica needs to know; plain values that travel to any node."""

    replica_id: str
    agents: tuple[str, ...]
    concurrency: int
    blobs_dir: str
    inline_limit_bytes: int
    input_dirs: tuple[str, ...]
    egress_allow: tuple[str, ...]
    num_gpus: float = 0.0
    gpu_memory_gb: float = 0.0
    code_dir: str = ""


class _Mailbox:
    """Reports for one orchestrator.

    Attributes:
        done: Attempts whose outcome is among the reports, to the `sent_at` of their calls.
    """

    __slots__ = ("done", "given", "last_seen_at", "news", "reports", "seq", "waiter")

    def __init__(self, seq: int) -> None:
        self.reports: deque[Report] = deque()
        self.done: dict[AttemptKey, float] = {}
        self.seq = self.given = seq
        self.news = asyncio.Event()
        self.waiter = 0
        self.last_seen_at = time.monotonic()

    def add(
        self,
        kind: str,
        key: AttemptKey,
        payload: bytes = b"",
        number: float = 0.0,
        *,
        sent_at: float = 0.0,
    ) -> None:
        self.seq += 1
        self.reports.append(Report(self.seq, kind, key, payload, number))
        if kind in _FINAL:
            self.done[key] = sent_at
        self.news.set()

    def pull(self, wanted: Collection[AttemptKey]) -> list[tuple[Report, float]]:
        """Take outcomes out, with the `sent_at` of their calls; their numbers stay: a gap would hold acks."""
        if not any(key in self.done for key in wanted):
            return []
        pulled = []
        for position, report in enumerate(self.reports):
            if report.kind in _FINAL and report.key in wanted:
                pulled.append((report, self.done.pop(report.key)))
                self.reports[position] = Report(report.seq, "moved", NO_ATTEMPT)
        return pulled

    def take_new(self) -> list[Report]:
        """Reports that no call has carried yet."""
        if self.given == self.seq:
            return []
        new = [report for report in self.reports if report.seq > self.given]
        self.given = self.seq
        return new

    def forget(self, ack: int) -> None:
        while self.reports and self.reports[0].seq <= ack:
            self.done.pop(self.reports.popleft().key, None)


class _Attempt:
    """An attempt this replica holds."""

    __slots__ = ("call", "caller", "context", "is_stopped", "sent_at", "task")

    def __init__(self, caller: str, call: StepCall) -> None:
        self.caller = caller
        self.call = call
        self.sent_at = call.sent_at
        self.is_stopped = False
        self.context: AttemptContext | None = None
        self.task: asyncio.Task[None] | None = None


class Replica:
    """Holds agents and runs attempts; a Ray actor with async methods."""

    def __init__(self, config: ReplicaConfig) -> None:
        self._config = config
        self._bound: dict[str, Any] = {}
        self._gpu_ids = tuple(str(each) for each in ray.get_gpu_ids()) if config.num_gpus else ()
        self._distrust = self._look_at_devices()
        self._concurrency = config.concurrency
        for path in config.agents if not self._distrust else ():
            module, _, name = path.partition(":")
            declaration = declaration_of(getattr(import_module(module), name))
            bound = declaration.bind()
            self._bound.update(dict.fromkeys(declaration.capabilities, bound))
        self._attempts: dict[AttemptKey, _Attempt] = {}
        self._queue: deque[_Attempt] = deque()
        self._num_running = 0
        self._mailboxes: dict[str, _Mailbox] = {}
        self._host: Host | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self._socket: SocketServer | None = None
        self._address: SocketAddress | None = None

    def _look_at_devices(self) -> str:
        """Say why the devices cannot be used; who had them before may need a moment to be gone."""
        config = self._config
        deadline = time.monotonic() + _DEVICE_PATIENCE_S
        while self._gpu_ids:
            reason = distrust_of(read_devices(), self._gpu_ids, config.num_gpus, config.gpu_memory_gb)
            if not reason or time.monotonic() > deadline:
                return reason
            time.sleep(_DEVICE_PAUSE_S)
        return ""

    async def ready(self) -> dict[str, Any]:
        """Answer once the agents are loaded: what they serve, and where it can be reached.

        Where `distrust` is not empty nothing was loaded: it says why the devices cannot be used.
        """
        self._start()
        async with self._opening:
            if self._socket is None:
                self._socket = SocketServer(self.exchange)
                self._address = await self._socket.start()
        return {
            "capabilities": sorted(self._bound),
            "pid": os.getpid(),
            "node_id": ray.get_runtime_context().get_node_id(),
            "socket": self._address,
            "gpu_ids": self._gpu_ids,
            "distrust": self._distrust,
        }

    async def set_concurrency(self, concurrency: int) -> None:
        """Have more or fewer attempts at a time from now on; those that run go on."""
        self._concurrency = concurrency
        if self._host is not None:
            before, self._host.threads = self._host.threads, _threads(concurrency)
            before.shutdown(wait=False)
        self._launch_queued()

    def _start(self) -> Host:
        if self._host is None:
            config = self._config
            self._host = Host(
                BlobStore(Path(config.blobs_dir)),
                _threads(self._concurrency),
                inline_limit_bytes=config.inline_limit_bytes,
                input_dirs=config.input_dirs,
                egress_allow=config.egress_allow,
                code_dir=config.code_dir,
            )
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep())
        return self._host

    # -- messages

    async def exchange(self, message: bytes) -> bytes:
        """Take work in, wait for reports, give them out.

        The newest call of an orchestrator is the one that waits; an older one returns at once. Without news
        it returns after 5 s, which is the replica's sign of life.
        """
        self._start()
        exchange = decode_exchange(message)
        mailbox = self._mailbox(exchange.caller, exchange.seen)
        mailbox.last_seen_at = time.monotonic()
        mailbox.forget(exchange.ack)
        if exchange.again:
            mailbox.given = exchange.seen
        mailbox.waiter += 1
        turn = mailbox.waiter
        mailbox.news.set()
        for key in exchange.stops:
            self._stop(key, mailbox)
        for call in exchange.calls:
            self._take(exchange.caller, call)
        deadline = time.monotonic() + _HEARTBEAT_S
        while True:
            mailbox.news.clear()
            if self._num_running:
                await asyncio.sleep(0)
            new = mailbox.take_new()
            left_s = deadline - time.monotonic()
            if new or turn != mailbox.waiter or left_s <= 0:
                return encode(Reports(new))
            # Not wait_for: before Python 3.12 it begins to listen a moment later, and misses what comes then.
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await mailbox.news.wait()

    async def adopt(self, caller: str, seen: int, keys: list[AttemptKey]) -> list[AttemptKey]:
        """Give the attempts to another orchestrator, the owner of their Runs now.

        Args:
            caller: The orchestrator.
            seen: Number of the last report it has received from here.
            keys: The attempts it looks for.

        Returns:
            The keys of those held here, finished or not.
        """
        self._start()
        mailbox = self._mailbox(caller, seen)
        wanted = {(run_id, step, item, attempt) for run_id, step, item, attempt in keys}
        held = set()
        # From its own mailbox too: what came while the caller had lost the Run, it did not look at.
        for report, sent_at in [each for box in self._mailboxes.values() for each in box.pull(wanted)]:
            mailbox.add(report.kind, report.key, report.payload, report.number, sent_at=sent_at)
            held.add(report.key)
        for key in wanted & self._attempts.keys():
            self._attempts[key].caller = caller
            held.add(key)
        return sorted(held)

    def _mailbox(self, caller: str, seen: int = 0) -> _Mailbox:
        """Find or make the mailbox; a new one goes on counting where the orchestrator stands."""
        mailbox = self._mailboxes.get(caller)
        if mailbox is None:
            mailbox = self._mailboxes[caller] = _Mailbox(seen)
        return mailbox

    # -- attempts

    def _take(self, caller: str, call: StepCall) -> None:
        held = self._attempts.get(call.key)
        if held is not None:
            if held.sent_at == call.sent_at:
                return  # the call came twice
            # The store had forgotten that it was sent, and it may have another owner now.
            if held.call.inputs == call.inputs:
                held.caller, held.sent_at = caller, call.sent_at
                return
            self._abandon(held)
        elif self._mailbox(caller).done.get(call.key) == call.sent_at:
            return  # the call came twice
        else:
            for mailbox in self._mailboxes.values():
                mailbox.pull((call.key,))
        attempt = _Attempt(caller, call)
        self._attempts[call.key] = attempt
        if self._num_running < self._concurrency:
            self._launch(attempt)
        else:
            self._queue.append(attempt)

    def _launch(self, attempt: _Attempt) -> None:
        self._num_running += 1
        attempt.task = asyncio.get_running_loop().create_task(self._run(attempt))

    async def _run(self, attempt: _Attempt) -> None:
        call = attempt.call
        host = self._start()

        def tell(fraction: float, message: str) -> None:
            if call.key in self._attempts:
                self._mailbox(attempt.caller).add("progress", call.key, message.encode()[:500], fraction)

        context = attempt.context = AttemptContext(call, host, tell)
        bound = self._bound.get(call.capability)
        kind, payload, number = "ok", b"", 0.0
        try:
            if attempt.is_stopped:
                kind = "stopped"
            elif bound is None:
                failure = Failure(
                    FailureCode.AGENT_UNAVAILABLE, f"{self._config.replica_id} does not serve this"
                )
                kind, payload = "failed", _failures.encode(failure)
            else:
                payload = await execute(bound, call, context, host)
        except BaseException as error:  # noqa: BLE001 - an agent's code may raise anything, also what ends a process
            if attempt.is_stopped:
                kind = "stopped"
            else:
                failure, number = failure_of(error)
                kind, payload = "failed", _failures.encode(failure)
        if self._attempts.get(call.key) is attempt:
            del self._attempts[call.key]
            self._mailbox(attempt.caller).add(kind, call.key, payload, number, sent_at=attempt.sent_at)
        self._num_running -= 1
        self._launch_queued()

    def _launch_queued(self) -> None:
        while self._queue and self._num_running < self._concurrency:
            self._launch(self._queue.popleft())

    def _abandon(self, attempt: _Attempt) -> None:
        """Stop an attempt that nobody will ask for; it reports to nobody."""
        del self._attempts[attempt.call.key]
        if attempt.task is None:
            self._queue.remove(attempt)
        else:
            self._cancel(attempt, attempt.task)

    @staticmethod
    def _cancel(attempt: _Attempt, task: asyncio.Task[None]) -> None:
        attempt.is_stopped = True
        if attempt.context is not None:  # else it has not begun: it would never report
            attempt.context.stop()
            task.cancel()

    def _stop(self, key: AttemptKey, mailbox: _Mailbox) -> None:
        attempt = self._attempts.get(key)
        if attempt is None:
            mailbox.add("stopped", key)
            return
        if attempt.task is None:
            self._queue.remove(attempt)
            del self._attempts[key]
            mailbox.add("stopped", key)
            return
        self._cancel(attempt, attempt.task)

    async def _sweep(self) -> None:
        """Stop what belongs to an orchestrator that has not called for a minute: nobody would take the
        result.
        """
        while True:
            await asyncio.sleep(_HEARTBEAT_S)
            now = time.monotonic()
            for caller, mailbox in list(self._mailboxes.items()):
                if now - mailbox.last_seen_at < _CALLER_SILENCE_S:
                    continue
                held = [key for key, attempt in self._attempts.items() if attempt.caller == caller]
                for key in held:
                    self._stop(key, mailbox)
                if not held:
                    del self._mailboxes[caller]


def _threads(num: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num, thread_name_prefix="agent")
