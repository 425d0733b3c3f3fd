"""The blob store on real files: durability, damage, concurrency, a full disk, sweeping."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import orjson
import pytest

from cluster.errors import InvalidInput, NotFound, Unavailable
from cluster.store.blobs import BlobStore, Swept

CONTENT = b"all players together" * 1000
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "data" / "blobs")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "blobs"


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and path.name not in {"key", "lock"})


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_what_was_put_is_read_back_by_reference_also_by_another_process(store: BlobStore, root: Path) -> None:
    reference = store.put(CONTENT, "text/plain")
    seal = reference["seal"]
    assert reference == {
        "$blob": DIGEST,
        "size_bytes": len(CONTENT),
        "media_type": "text/plain",
        "seal": seal,
    }
    assert store.read(reference) == CONTENT
    assert store.read({**reference, "path": "a.b"}) == CONTENT
    assert BlobStore(root).read(reference) == CONTENT
    assert store.exists(reference)
    assert store.put(b"", "text/plain")["size_bytes"] == 0


def test_only_the_owner_may_read_the_files(store: BlobStore, root: Path) -> None:
    store.put(CONTENT, "text/plain")
    for path in [root, *root.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_the_same_content_has_one_file_whatever_its_type(store: BlobStore, root: Path) -> None:
    assert store.put(CONTENT, "text/plain")["$blob"] == store.put(CONTENT, "text/html")["$blob"]
    assert len(files(root)) == 1


def test_a_missing_blob_is_not_found(store: BlobStore) -> None:
    reference = store.put(CONTENT, "text/plain")
    assert store.delete(reference) is True
    assert not store.exists(DIGEST)
    with pytest.raises(NotFound):
        store.read(reference)
    assert store.delete(DIGEST) is False


def test_who_only_knows_a_digest_cannot_read_the_blob(store: BlobStore, tmp_path: Path) -> None:
    """The hash of what another tenant keeps may be known or guessed; it is no reference."""
    reference = store.put(CONTENT, "text/plain")
    elsewhere = BlobStore(tmp_path / "other").put(CONTENT, "text/plain")
    unsealed = {name: value for name, value in reference.items() if name != "seal"}
    for forged in (
        unsealed,
        {**reference, "seal": "0" * 32},
        {**reference, "seal": "ä"},
        {**reference, "$blob": store.put(b"another", "text/plain")["$blob"]},
        elsewhere,
    ):
        with pytest.raises(InvalidInput, match="not a reference that this service has made"):
            store.read(forged)


def test_processes_that_come_first_together_agree_on_one_key(root: Path) -> None:
    with ThreadPoolExecutor(16) as threads:
        stores = list(threads.map(lambda _: BlobStore(root), range(16)))
    references = [store.put(CONTENT, "text/plain") for store in stores]
    assert len({reference["seal"] for reference in references}) == 1


def test_damaged_key_is_told_and_not_replaced(store: BlobStore, root: Path) -> None:
    (root / "key").write_bytes(b"half")
    with pytest.raises(Unavailable, match="key of the blob folder is damaged"):
        BlobStore(root)


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "../../secret",
        "sha256:../../../secret",
        DIGEST + "/../x",
        DIGEST.upper(),
        DIGEST + "\n",
        "sha256:" + "0" * 63,
    ],
)
def test_nothing_but_a_digest_becomes_a_path(store: BlobStore, tmp_path: Path, digest: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    for use in (store.exists, store.delete):
        with pytest.raises(InvalidInput):
            use(digest)
    for use in (store.read, store.exists, store.delete):
        with pytest.raises(InvalidInput):
            use({"$blob": digest})


def test_damage_is_noticed_and_healed_by_the_next_put(store: BlobStore, root: Path) -> None:
    reference = store.put(CONTENT, "text/plain")
    [path] = files(root)
    path.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(NotFound, match="damaged") as error:
        store.read(reference)
    assert error.value.details["damaged"] is True
    assert not store.exists(DIGEST)
    assert store.read(store.put(CONTENT, "text/plain")) == CONTENT


def test_a_truncated_file_is_written_again_by_put(store: BlobStore, root: Path) -> None:
    store.put(CONTENT, "text/plain")
    [path] = files(root)
    path.write_bytes(CONTENT[:100])
    assert store.read(store.put(CONTENT, "text/plain")) == CONTENT


def test_a_deleted_blob_is_gone(store: BlobStore) -> None:
    store.put(CONTENT, "text/plain")
    assert store.delete(DIGEST) is True
    assert not store.exists(DIGEST)


def _write_for_ever(root: Path, ready: Connection) -> None:
    store = BlobStore(root)
    number = 0
    while True:
        store.put(os.urandom(1 << 20), "application/octet-stream")
        number += 1
        if number == 3:
            ready.send("written")


def test_a_writer_killed_in_the_middle_leaves_only_whole_blobs(store: BlobStore, root: Path) -> None:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    writer = context.Process(target=_write_for_ever, args=(root, sender))
    writer.start()
    assert receiver.recv() == "written"
    writer.kill()
    writer.join()
    whole = files(root / "blobs")
    assert len(whole) >= 3
    for path in whole:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.parent.name + path.name
    assert store.read(store.put(CONTENT, "text/plain")) == CONTENT


def test_leftovers_of_dead_writers_are_swept_when_old(store: BlobStore, root: Path) -> None:
    old, young = root / "incoming" / "old", root / "incoming" / "young"
    for leftover in (old, young):
        leftover.write_bytes(b"half")
    age(old, 7200)
    assert store.sweep(keep=(), older_than_s=3600) == Swept(0, 0, 1)
    assert files(root) == [young]


def test_sweep_keeps_what_is_named_and_what_is_young(store: BlobStore, root: Path) -> None:
    named, forgotten, young = (store.put(text, "text/plain") for text in (b"named", b"forgotten", b"young"))
    for path in files(root):
        if path.read_bytes() != b"young":
            age(path, 7200)
    assert store.sweep({named["$blob"]}, older_than_s=3600) == Swept(1, len(b"forgotten"), 0)
    assert [store.exists(reference) for reference in (named, forgotten, young)] == [True, False, True]
    assert store.sweep(lambda digest: digest == named["$blob"], older_than_s=0).num_blobs == 1
    assert store.exists(named)


def test_a_blob_that_is_put_again_is_young_again(store: BlobStore, root: Path) -> None:
    store.put(CONTENT, "text/plain")
    [path] = files(root)
    age(path, 7200)
    store.put(CONTENT, "text/plain")
    assert store.sweep(keep=(), older_than_s=3600) == Swept(0, 0, 0)


def test_a_damaged_file_is_swept_in_its_time(store: BlobStore, root: Path) -> None:
    reference = store.put(CONTENT, "text/plain")
    [path] = files(root)
    path.write_bytes(b"!")
    age(path, 7200)
    with pytest.raises(NotFound):
        store.read(reference)
    assert store.sweep(keep=(), older_than_s=3600).num_leftovers == 1
    assert files(root) == []


def test_many_writers_of_the_same_content_all_succeed(store: BlobStore, root: Path) -> None:
    contents = [bytes([n % 8]) * 50_000 for n in range(64)]
    with ThreadPoolExecutor(16) as threads:
        references = list(threads.map(lambda content: store.put(content, "x/y"), contents))
    assert [store.read(reference) for reference in references] == contents
    assert len(files(root)) == 8


def test_a_blob_put_again_while_a_sweep_runs_is_there_afterwards(store: BlobStore, root: Path) -> None:
    contents = [bytes([n]) * 100 for n in range(32)]
    for _ in range(10):
        for content in contents:
            store.put(content, "x/y")
        for path in files(root / "blobs"):
            age(path, 7200)
        sweeper = threading.Thread(target=store.sweep, args=((), 3600))
        sweeper.start()
        references = [store.put(content, "x/y") for content in contents]
        sweeper.join()
        assert [store.read(reference) for reference in references] == contents


def _put_with_little_room(root: Path, answer: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        BlobStore(root).put(b"x" * 100_000, "x/y")
    except Unavailable as error:
        answer.send((error.message, error.retry_after_s))


def test_a_file_that_finds_no_room_is_unavailable_and_leaves_nothing(root: Path) -> None:
    """The limit of a process's file size stands in for a full disk: a write fails half-way all the same."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    writer = context.Process(target=_put_with_little_room, args=(root, sender))
    writer.start()
    sender.close()
    message, retry_after_s = receiver.recv()
    writer.join()
    assert "the disk is full" in message
    assert retry_after_s > 0
    assert files(root) == []


def test_a_root_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable, match="cannot be made"):
        BlobStore(tmp_path / "file" / "blobs")


def test_age_of_the_oldest_blob_is_told_from_its_last_put(store: BlobStore, root: Path) -> None:
    assert not store.older_than(0.0)
    store.put(CONTENT, "text/plain")
    assert not store.older_than(60.0)
    age(root / "blobs" / DIGEST[7:9] / DIGEST[9:], 120.0)
    assert store.older_than(60.0)
    store.put(CONTENT, "text/plain")
    assert not store.older_than(60.0)


def test_json_names_other_blobs_and_other_content_names_none(store: BlobStore) -> None:
    inner = store.put(CONTENT, "text/plain")
    outer = store.put(orjson.dumps([{"deep": {**inner, "path": "a"}}]), "application/json")
    assert store.digests_in(outer["$blob"]) == {DIGEST}
    indented = store.put(b"\n [" + orjson.dumps(inner) + b"]", "application/json")
    assert store.digests_in(indented["$blob"]) == {DIGEST}
    assert store.digests_in(DIGEST) == frozenset()
    assert store.digests_in("sha256:" + "0" * 64) == frozenset()
    with pytest.raises(InvalidInput):
        store.digests_in("../../etc/passwd")
