"""The edge on a real Redis, and an owner of its partitions whose agents are the test itself."""

from __future__ import annotations

import asyncio

import httpx
import orjson
import pytest

from actors.driver import Driver
from actors.partition import Partition
from cluster.model import events as ev
from cluster.model.view import Failure
from cluster.settings import Settings
from cluster.store.journal import Journal
from serve_app.http_app import build_app
from serve_app.service import RunService

NUM_PARTITIONS = 2


class Owner:
    """Owns all partitions with the service's own driver; the test decides what each step comes to."""

    def __init__(self, settings: Settings) -> None:
        self._journal = Journal(settings.redis_url, settings.num_partitions, "owner", 60.0)
        self._driver = Driver(
            settings,
            self._journal,
            "owner",
            find_attempts=lambda link, keys: None,
            ask_for_slots=lambda: None,
            replace_replica=lambda replica_id, reason: None,
        )
        self._loops: list[asyncio.Task[None]] = []
        self._news = asyncio.Condition()

    async def start(self) -> None:
        numbers = list(range(NUM_PARTITIONS))
        for number, ownership in (await self._journal.own(numbers, 60.0)).items():
            self._driver.partitions[number] = Partition(number, ownership.epoch)
        for each in self._driver.partitions.values():
            each.is_open = True
        driver = self._driver
        bodies = (self._inbox(), driver.commit_loop(), driver.timer_loop(), driver.desk.upkeep_loop())
        self._loops = [asyncio.create_task(body) for body in bodies]

    async def _inbox(self) -> None:
        while True:
            cursors = {number: each.cursor for number, each in self._driver.partitions.items()}
            for entry in await self._journal.read_inbox(cursors):
                await self._driver.intake.take_entry(entry)
                async with self._news:
                    self._news.notify_all()

    async def close(self) -> None:
        for loop in self._loops:
            while not loop.done():  # a call to Redis may swallow one cancellation
                loop.cancel()
                await asyncio.wait([loop], timeout=0.1)
        await self._driver.close()
        await self._journal.close()

    async def take(self, run_id):
        """Wait until the Run is in memory."""
        async with asyncio.timeout(5), self._news:
            await self._news.wait_for(lambda: self._driver.find(run_id))
        return self._driver.find(run_id)

    async def apply(self, run_id, *events) -> None:
        """Let something happen to a Run."""
        found = await self.take(run_id)
        for event in events:
            self._driver.apply(*found, event)

    async def begin(self, run_id, step, item=-1) -> None:
        """Assign a step, and tell some progress of it."""
        await self.apply(run_id, ev.StepAssigned(step, item, f"agent-{step}"))
        await self.apply(run_id, ev.StepProgressed(step, item, 1, 0.5, "half way"))

    async def succeed(self, run_id, *outputs) -> None:
        """Let the first steps of a Run succeed, one after the other."""
        for step, output in enumerate(outputs):
            await self.apply(
                run_id,
                ev.StepAssigned(step, -1, f"agent-{step}"),
                ev.StepSucceeded(step, -1, 1, orjson.dumps(output)),
            )

    async def fail(self, run_id, step, code, message) -> None:
        """Let a step fail for good."""
        await self.apply(
            run_id,
            ev.StepAssigned(step, -1, f"agent-{step}"),
            ev.StepFailed(step, -1, 1, Failure(code, message), 0.5),
        )


@pytest.fixture
def settings(redis_url, tmp_path):
    return Settings(
        redis_url=redis_url,
        data_dir=tmp_path,
        num_partitions=NUM_PARTITIONS,
        command_wait_s=0.3,
        max_body_bytes=64 * 1024,
        inline_limit_bytes=4096,
    )


@pytest.fixture
async def service(settings):
    service = RunService.connect(settings)
    yield service
    await service.close()


@pytest.fixture
async def owner(settings):
    owner = Owner(settings)
    await owner.start()
    yield owner
    await owner.close()


@pytest.fixture
async def client(service, settings):
    async with client_of(service, settings) as client:
        yield client


@pytest.fixture
def make_client():
    return client_of


def client_of(service, settings, peer="127.0.0.1", **options):
    transport = httpx.ASGITransport(build_app(service, settings), client=(peer, 1))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", **options)
