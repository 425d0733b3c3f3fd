"""The durable outbox of webhooks: read from Redis, delivered, and only then forgotten.

Each delivery is a task of its own, so that a slow receiver delays nobody. A delivery may arrive twice, with
one id.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any

import orjson
import structlog

from actors.webhooks import deliver
from cluster.errors import TuttiError
from cluster.scheduling.backoff import webhook_delay_s
from cluster.store.connection import redis_errors_as_ours
from cluster.store.keys import PartitionKeys

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from cluster.settings import Settings

__all__ = ["WebhookSender"]

_log = structlog.get_logger("tutti.webhooks")
_EVERY_S = 0.5
_MAX_DUE = 100
_MAX_UNDER_WAY = 200
_MAX_DEAD = 10_000


class WebhookSender:
    """Delivers what is due, for ever."""

    def __init__(self, settings: Settings, redis: Redis) -> None:
        self._settings = settings
        self._redis = redis
        self._partitions = [PartitionKeys(p) for p in range(settings.num_partitions)]
        self._under_way: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Look for due deliveries twice a second."""
        while True:
            try:
                await self._look()
            except TuttiError as error:
                _log.warning("webhooks wait", reason=error.message)
            await asyncio.sleep(_EVERY_S)

    async def _look(self) -> None:
        with redis_errors_as_ours():
            pipe = self._redis.pipeline(transaction=False)
            for names in self._partitions:
                pipe.zrangebyscore(names.webhooks_due, "-inf", time.time(), start=0, num=_MAX_DUE)
            due: list[Any] = await pipe.execute()
        for names, ids in zip(self._partitions, due, strict=True):
            for raw in ids:
                webhook_id = raw.decode()
                if webhook_id not in self._under_way and len(self._under_way) < _MAX_UNDER_WAY:
                    task = asyncio.get_running_loop().create_task(self._deliver(names, webhook_id))
                    self._under_way[webhook_id] = task

    async def _deliver(self, names: PartitionKeys, webhook_id: str) -> None:
        try:
            with redis_errors_as_ours():
                raw: Any = await self._redis.hget(names.webhooks, webhook_id)
            if raw is None:
                await self._forget(names, webhook_id)
                return
            entry = orjson.loads(raw)
            delivery = await deliver(
                entry["url"],
                entry["payload"].encode(),
                webhook_id=webhook_id,
                secret=self._settings.webhook_secret or None,
                allow=self._settings.egress_allow,
            )
            if delivery.ok:
                await self._forget(names, webhook_id)
            else:
                entry["error"] = delivery.error or f"status {delivery.status}"
                await self._put_off(names, webhook_id, entry, delivery.retryable)
        except TuttiError as error:
            _log.warning("webhook waits", webhook=webhook_id, reason=error.message)
        finally:
            self._under_way.pop(webhook_id, None)

    async def _forget(self, names: PartitionKeys, webhook_id: str) -> None:
        with redis_errors_as_ours():
            pipe = self._redis.pipeline(transaction=True)
            pipe.zrem(names.webhooks_due, webhook_id)
            pipe.hdel(names.webhooks, webhook_id)
            await pipe.execute()

    async def _put_off(
        self, names: PartitionKeys, webhook_id: str, entry: dict[str, Any], retryable: bool
    ) -> None:
        entry["failures"] += 1
        delay_s = webhook_delay_s(entry["failures"], random.random()) if retryable else None
        with redis_errors_as_ours():
            pipe = self._redis.pipeline(transaction=True)
            if delay_s is None:
                pipe.zrem(names.webhooks_due, webhook_id)
                pipe.hdel(names.webhooks, webhook_id)
                if await self._redis.hlen(names.webhooks_dead) < _MAX_DEAD:
                    pipe.hset(names.webhooks_dead, webhook_id, orjson.dumps(entry))
            else:
                pipe.hset(names.webhooks, webhook_id, orjson.dumps(entry))
                pipe.zadd(names.webhooks_due, {webhook_id: time.time() + delay_s})
            await pipe.execute()
        _log.info("webhook failed", webhook=webhook_id, failures=entry["failures"], again_in_s=delay_s)
