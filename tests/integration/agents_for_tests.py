"""Agents that misbehave on purpose, or that write down what they did. Imported by replicas, by path."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import ray

from actors.agent import AgentContext, agent
from cluster.errors import StepError
from cluster.model.plan import Json


@agent("nap")
async def nap(inputs: Json, context: AgentContext) -> Json:
    """Sleep without telling progress; write down who began, where `log` names a file."""
    note(inputs, f"{context.run_id} {context.attempt} {os.getpid()}")
    await asyncio.sleep(float(inputs.get("seconds", 0.2)))
    return {"slept": inputs.get("seconds", 0.2), "n": inputs.get("n")}


@agent("die")
def die(inputs: Json, context: AgentContext) -> Json:
    """Kill the own process after a moment, while the attempt is at most `times`."""
    time.sleep(float(inputs.get("after_s", 0.1)))
    if context.attempt <= inputs.get("times", 1 << 30):
        os.kill(os.getpid(), signal.SIGKILL)
    return {"survived_attempt": context.attempt}


@agent("solo")
async def solo(inputs: Json, context: AgentContext) -> Json:
    """Work in a pool of concurrency 1: the file shows the order."""
    note(inputs, str(inputs["name"]))
    await asyncio.sleep(float(inputs.get("seconds", 0.0)))
    return inputs["name"]


@agent("stuck")
def stuck(inputs: Json) -> Json:
    """Hold a thread and never look whether the result is still wanted."""
    note(inputs, f"pid {os.getpid()}")
    time.sleep(float(inputs.get("seconds", 600.0)))
    return {"pid": os.getpid()}


@agent("patient")
async def patient(inputs: Json, context: AgentContext) -> Json:
    """Work beside the stuck one: attempt and process are the result."""
    note(inputs, f"patient {os.getpid()} attempt {context.attempt}")
    await asyncio.sleep(float(inputs.get("seconds", 4.0)))
    return {"attempt": context.attempt, "pid": os.getpid()}


@agent("gated")
async def gated(inputs: Json) -> Json:
    """Hold a slot until the file `gate` is there."""
    while not Path(inputs["gate"]).exists():  # noqa: ASYNC110, ASYNC240 - it is opened by another process
        await asyncio.sleep(0.02)
    return None


@agent("one", "two", "three", "many")
async def held(inputs: Json, capability: str) -> Json:
    """Hold a slot until the file `gate` is there, in pools that differ in what they reserve."""
    note(inputs, capability)
    while not Path(inputs["gate"]).exists():  # noqa: ASYNC110, ASYNC240 - it is opened by another process
        await asyncio.sleep(0.02)
    return {"gpus": [str(each) for each in ray.get_gpu_ids()]}


@agent("watchful")
async def watchful(inputs: Json) -> Json:
    """Write down when the own coroutine was cancelled."""
    note(inputs, "began")
    try:
        await asyncio.sleep(600.0)
    except asyncio.CancelledError:
        note(inputs, f"cancelled {time.time()}")
        raise
    return None


@agent("picky")
def picky(inputs: Json) -> Json:
    """Refuse what is not ripe yet, and say after how long to come again."""
    if time.time() < inputs["ripe_at"]:
        raise StepError("not ripe", code="EXECUTION_FAILED", retryable=True, retry_after_s=inputs["wait_s"])
    return "ripe"


def note(inputs: Json, line: str) -> None:
    """Append a line to the file that the inputs name, in one write, so that processes do not mix lines."""
    if isinstance(inputs, dict) and inputs.get("log"):
        with Path(inputs["log"]).open("ab", buffering=0) as file:
            file.write(line.encode() + b"\n")


@agent("hoard")
async def hoard(inputs: Json, context: AgentContext) -> Json:
    """Store a blob, tell its digest beside the file `until`, wait for that file; the result names it."""
    until = Path(inputs["until"])
    kept = await asyncio.to_thread(context.write_blob, inputs["text"].encode(), "text/plain")
    told = until.with_name(f"{until.name}.tmp")
    told.write_text(kept["$blob"])
    told.rename(until.with_name(f"{until.name}.{context.attempt}"))
    while not await asyncio.to_thread(until.exists):  # noqa: ASYNC110 - a test tells other processes by files
        await asyncio.sleep(0.02)
    return {"kept": kept, "padding": "x" * inputs["padding"]}


@agent("odd")
async def odd(inputs: Json) -> Json:
    """Raise what usually ends a process, a generator or a task."""
    raise_odd(inputs["raise"])
    return None


@agent("odd_in_thread")
def odd_in_thread(inputs: Json) -> Json:
    """The same in a thread."""
    raise_odd(inputs["raise"])
    return None


def raise_odd(name: str) -> None:
    """Raise an exception by its name."""
    kinds = (SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, asyncio.CancelledError)
    raise next(kind for kind in kinds if kind.__name__ == name)("on purpose")
