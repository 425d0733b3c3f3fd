import asyncio

import pytest
from starlette.requests import Request

from cluster.errors import InvalidInput, Unavailable
from cluster.lifecycle.run_status import RunStatus
from cluster.model.view import RunEvent
from serve_app.streams import event_stream, last_event_id


def _event(seq):
    return RunEvent(seq=seq, type="run.started", at=0.0, status=RunStatus.RUNNING)


def _request(query=b"", **headers):
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw, "query_string": query})


async def _body(response):
    return b"".join([chunk async for chunk in response.body_iterator]).decode()


async def test_each_event_is_framed_with_its_id_and_the_stream_ends_with_them():
    async def events():
        yield _event(1)
        yield _event(2)

    response = await event_stream(events(), lambda event: b"{}", is_over=False)
    assert response.media_type == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    assert await _body(response) == ": following\n\nid: 1\ndata: {}\n\nid: 2\ndata: {}\n\n"


async def test_client_that_has_seen_all_of_an_ended_run_is_told_to_stop_asking():
    async def events():
        return
        yield

    response = await event_stream(events(), lambda event: b"{}", is_over=True)
    assert response.status_code == 204


async def test_past_of_an_ended_run_is_sent_whole():
    async def events():
        yield _event(1)
        yield _event(2)

    response = await event_stream(events(), lambda event: b"{}", is_over=True)
    assert await _body(response) == "id: 1\ndata: {}\n\nid: 2\ndata: {}\n\n"


async def test_silence_is_filled_with_comments_and_loses_no_event():
    gate = asyncio.Event()

    async def events():
        await gate.wait()
        yield _event(1)

    response = await event_stream(events(), lambda event: b"{}", is_over=False, keepalive_s=0.01)
    chunks = []
    async for chunk in response.body_iterator:
        chunks.append(chunk)
        if len(chunks) == 3:
            gate.set()
    assert chunks[1] == chunks[2] == b": still here\n\n"
    assert chunks[-1] == b"id: 1\ndata: {}\n\n"


async def test_events_that_are_there_together_go_out_in_one_piece_and_later_ones_do_not_wait():
    gate = asyncio.Event()

    async def events():
        for seq in (1, 2, 3):
            yield _event(seq)
        await gate.wait()
        yield _event(4)
        yield _event(5)

    response = await event_stream(events(), lambda event: b"{}", is_over=False)
    chunks = []
    async for chunk in response.body_iterator:
        chunks.append(chunk)
        if len(chunks) == 2:
            gate.set()
    assert chunks[1:] == [
        b"id: 1\ndata: {}\n\nid: 2\ndata: {}\n\nid: 3\ndata: {}\n\n",
        b"id: 4\ndata: {}\n\nid: 5\ndata: {}\n\n",
    ]


async def test_many_events_at_once_go_out_in_order_in_bounded_pieces():
    async def events():
        for seq in range(1, 1001):
            yield _event(seq)

    response = await event_stream(events(), lambda event: b"{}", is_over=False)
    chunks = [chunk async for chunk in response.body_iterator]
    assert len(chunks) == 5
    assert [line for line in b"".join(chunks).split(b"\n") if line.startswith(b"id")] == [
        b"id: %d" % seq for seq in range(1, 1001)
    ]


async def test_loss_of_the_store_ends_the_stream_so_that_the_client_comes_back():
    async def events():
        yield _event(1)
        raise Unavailable("away")

    response = await event_stream(events(), lambda event: b"{}", is_over=False)
    assert (await _body(response)).endswith("retry: 1000\n: interrupted\n\n")


async def test_departure_of_the_client_closes_what_it_followed():
    closed = asyncio.Event()

    async def events():
        try:
            yield _event(1)
            await asyncio.Event().wait()
        finally:
            closed.set()

    response = await event_stream(events(), lambda event: b"{}", is_over=False)
    iterator = response.body_iterator
    await anext(iterator)
    await anext(iterator)
    pending = asyncio.ensure_future(anext(iterator))
    await asyncio.sleep(0)
    pending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pending
    assert closed.is_set()


def test_last_event_id_comes_from_header_or_query():
    assert last_event_id(_request()) == 0
    assert last_event_id(_request(last_event_id="7")) == 7
    assert last_event_id(_request(b"last_event_id=9")) == 9


@pytest.mark.parametrize("text", ["x", "-1", "1.5", "9" * 16, "²"])
def test_last_event_id_that_is_no_number_is_refused(text):
    with pytest.raises(InvalidInput):
        last_event_id(
            Request(
                {"type": "http", "headers": [(b"last-event-id", text.encode("utf-8"))], "query_string": b""}
            )
        )
