"""What Redis holds of Runs, read directly: a test sees what is durable, not what a process believes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import redis

from cluster.engine import RunRecord
from cluster.model.view import RunEvent, RunView
from cluster.store import keys
from cluster.store.run_codec import decode_events, decode_record, decode_run, view_of

__all__ = ["StoredRuns"]

_POLL_S = 0.05


class StoredRuns:
    """The Runs of one Redis."""

    def __init__(self, client: redis.Redis, num_partitions: int) -> None:
        self.redis = client
        self.num_partitions = num_partitions

    def names_of(self, run_id: str) -> keys.PartitionKeys:
        return keys.PartitionKeys(keys.partition_of(run_id, self.num_partitions))

    def records(self, run_ids: Iterable[str]) -> dict[str, RunRecord]:
        ids = list(run_ids)
        pipe = self.redis.pipeline(transaction=False)
        for run_id in ids:
            pipe.hget(self.names_of(run_id).run(run_id), "record")
        return {run_id: decode_record(raw) for run_id, raw in zip(ids, pipe.execute(), strict=True) if raw}

    def record(self, run_id: str) -> RunRecord:
        return self.records([run_id])[run_id]

    def fields(self, run_ids: Iterable[str]) -> dict[str, dict[bytes, bytes]]:
        """All that is stored of each Run as it stands; empty where there is none."""
        ids = list(run_ids)
        pipe = self.redis.pipeline(transaction=False)
        for run_id in ids:
            pipe.hgetall(self.names_of(run_id).run(run_id))
        return dict(zip(ids, pipe.execute(), strict=True))

    def views(self, run_ids: Iterable[str]) -> dict[str, RunView]:
        return {run_id: view_of(decode_run(fields)) for run_id, fields in self.fields(run_ids).items()}

    def view(self, run_id: str) -> RunView:
        return self.views([run_id])[run_id]

    def events(self, run_ids: Iterable[str]) -> dict[str, list[RunEvent]]:
        ids = list(run_ids)
        pipe = self.redis.pipeline(transaction=False)
        for run_id in ids:
            pipe.xrange(self.names_of(run_id).events(run_id))
        return {
            run_id: [event for _, fields in rows for event in decode_events(fields[b"e"])]
            for run_id, rows in zip(ids, pipe.execute(), strict=True)
        }

    def num_unfinished(self) -> int:
        pipe = self.redis.pipeline(transaction=False)
        for number in range(self.num_partitions):
            pipe.zcard(keys.PartitionKeys(number).active)
        return sum(pipe.execute())

    def totals(self) -> dict[str, int]:
        """How many Runs were submitted and ended in which way, ever."""
        found: dict[str, int] = {}
        for number in range(self.num_partitions):
            for name, count in self.redis.hgetall(keys.PartitionKeys(number).totals).items():
                found[name.decode()] = found.get(name.decode(), 0) + int(count)
        return found

    def await_ended(self, run_ids: Sequence[str], within_s: float = 60.0) -> dict[str, RunRecord]:
        """Wait until all have ended; the failure says which have not."""
        ended: dict[str, RunRecord] = {}
        deadline = time.monotonic() + within_s
        while True:
            try:
                found = self.records(run_id for run_id in run_ids if run_id not in ended)
            except redis.RedisError:
                found = {}
            ended.update({i: record for i, record in found.items() if record.status.is_terminal})
            if len(ended) == len(set(run_ids)):
                return ended
            if time.monotonic() > deadline:
                missing = [run_id for run_id in run_ids if run_id not in ended]
                raise AssertionError(
                    f"{len(missing)} of {len(run_ids)} have not ended within {within_s:g} s, "
                    f"the first: {self.view(missing[0])}\n{self.circumstances()}"
                )
            time.sleep(_POLL_S)

    def circumstances(self) -> str:
        """What helps to understand why a Run has not ended."""
        return ""
