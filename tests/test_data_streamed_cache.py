"""Shards from elsewhere: fetched whole and once, checked, unpacked, within the bound, whatever the source does."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import lzma
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from streamed_folders import batches, make_folder, moved, opened

from lth_scale.data import index as indexing
from lth_scale.data.index import Index, Shard
from lth_scale.data.streamed import cache as caching
from lth_scale.data.streamed import remote
from lth_scale.data.streamed.cache import Cache, default_folder
from lth_scale.data.streamed.faults import BadShard
from lth_scale.data.streamed.loading import evaluation
from lth_scale.data.streamed.reading import _context
from lth_scale.errors import UserError

GB = 10**9
Behaviour = Callable[[BaseHTTPRequestHandler, bytes, int], None]


def serve_whole(handler: BaseHTTPRequestHandler, content: bytes, number: int) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def drop(handler: BaseHTTPRequestHandler, content: bytes, number: int) -> None:
    serve_half(handler, content)


def drop_twice(handler: BaseHTTPRequestHandler, content: bytes, number: int) -> None:
    (drop if number < 2 else serve_whole)(handler, content, number)


def drop_unannounced(handler: BaseHTTPRequestHandler, content: bytes, number: int) -> None:
    """HTTP/1.0 without a length: only the index can tell that this is not all."""
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])


def hang_up(handler: BaseHTTPRequestHandler, content: bytes, number: int) -> None:
    handler.connection.close()


def fail_twice(handler: BaseHTTPRequestHandler, content: bytes, number: int) -> None:
    if number < 2:
        handler.send_error(503)
    else:
        serve_whole(handler, content, number)


def refuse(handler: BaseHTTPRequestHandler, content: bytes, number: int) -> None:
    handler.send_error(404)


RELEASED = threading.Event()


def stall(handler: BaseHTTPRequestHandler, content: bytes, number: int) -> None:
    serve_half(handler, content)
    handler.wfile.flush()
    RELEASED.wait(20)


def serve_half(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])


@dataclass
class Served:
    """Files on loopback; ``asked`` counts the requests for each."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    behaviour: Behaviour = serve_whole
    asked: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def offer(self, name: str, content: bytes) -> Shard:
        self.files[name] = content
        return Shard(f"{self.url}/{name}", 0, len(content), hashlib.sha256(content).hexdigest())


@pytest.fixture
def server() -> Iterator[Served]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            with state.lock:
                number = state.asked.get(name, 0)
                state.asked[name] = number + 1
            state.behaviour(self, state.files[name], number)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state = Served(f"http://127.0.0.1:{http.server_port}")
        RELEASED.clear()
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield state
        RELEASED.set()
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "BACKOFF_SECONDS", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", GB)


CONTENT = os.urandom(300_000)


def kept(cache: Cache) -> list[Path]:
    return sorted(path for path in cache.folder.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize(("behaviour", "tries"), [(serve_whole, 1), (drop_twice, 3), (fail_twice, 3)])
def test_http_is_copied_once_also_from_a_server_that_fails_twice(
    server: Served, cache: Cache, behaviour: Behaviour, tries: int
) -> None:
    server.behaviour = behaviour
    shard = server.offer("a.tar", CONTENT)
    assert cache.path(shard).read_bytes() == CONTENT
    assert cache.path(shard).read_bytes() == CONTENT
    assert server.asked == {"a.tar": tries}
    assert kept(cache) == [cache.path(shard)]


@pytest.mark.parametrize(
    ("behaviour", "tries", "reason"),
    [
        (drop, 3, "the connection was dropped 150000 bytes before the end"),
        (drop_unannounced, 3, "it has 150000 bytes, the index says 300000"),
        (hang_up, 3, ""),
        (refuse, 1, "HTTP Error 404: Not Found"),
        (stall, 3, "timed out"),
    ],
)
def test_a_source_that_never_serves_it_whole_is_given_up(
    server: Served, cache: Cache, behaviour: Behaviour, tries: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "TIMEOUT_SECONDS", 0.1)
    server.behaviour = behaviour
    with pytest.raises(BadShard, match=rf"it cannot be fetched \(.*{reason}.*; tries: {tries}\)"):
        cache.path(server.offer("a.tar", CONTENT))
    assert server.asked == {"a.tar": tries} and kept(cache) == []


def test_what_is_not_what_the_index_names_is_refused(server: Served, cache: Cache) -> None:
    shard = server.offer("a.tar", CONTENT)
    server.files["a.tar"] = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(BadShard, match="its checksum differs from the index"):
        cache.path(shard)
    assert (
        cache.path(replace(shard, bytes=0, sha256="")).read_bytes() == server.files["a.tar"]
    )  # not known: not checked


def test_the_same_shard_from_two_places_is_kept_once(server: Served, cache: Cache) -> None:
    one, other = server.offer("a.tar", CONTENT), server.offer("b.tar", CONTENT)
    assert cache.path(one) == cache.path(other)
    assert server.asked == {"a.tar": 1}


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_shards_are_unpacked_and_checked_as_they_lie_there(
    tmp_path: Path, cache: Cache, server: Served, pack: Callable[[bytes], bytes]
) -> None:
    make_folder(tmp_path / "folder", [6])
    tar = (tmp_path / "folder" / "train-000000.tar").read_bytes()
    packed = pack(tar[:5000]) + pack(tar[5000:])  # of two members, as parallel compressors write
    (tmp_path / "packed").write_bytes(packed)
    shard = Shard(str(tmp_path / "packed"), 6, len(packed), hashlib.sha256(packed).hexdigest())
    assert cache.path(shard).read_bytes() == tar
    elsewhere = Cache(tmp_path / "other", GB)
    assert elsewhere.path(server.offer("a.tar.any", packed)).read_bytes() == tar
    (tmp_path / "packed").write_bytes(packed[:-20])
    with pytest.raises(BadShard, match="it cannot be fetched"):
        Cache(tmp_path / "third", GB).path(replace(shard, bytes=0, sha256=""))


def test_commands_are_read_to_their_end(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tar").write_bytes(CONTENT)
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert cache.path(Shard(f"pipe:cat {tmp_path}/a.tar", 0, len(CONTENT), digest)).read_bytes() == CONTENT
    for command, reason in {"printf abc; exit 3": "exit status 3", "no-such-command": "exit status 127"}.items():
        with pytest.raises(BadShard, match=rf"its command ended with {reason}; tries: 3"):
            cache.path(Shard(f"pipe:{command} 2>/dev/null", 0, 0, ""))
    monkeypatch.setattr(remote, "TIMEOUT_SECONDS", 0.1)
    with pytest.raises(BadShard, match=r"its command wrote nothing for 0.1 seconds; tries: 3"):
        cache.path(Shard("pipe:printf abc; exec sleep 20", 0, 0, ""))


# The bound


def test_the_least_recently_opened_goes_first_and_open_files_can_be_read_on(server: Served, tmp_path: Path) -> None:
    shards = [server.offer(f"{number}.tar", bytes([number]) * 1000) for number in range(4)]
    cache = Cache(tmp_path / "cache", 3000)
    held = cache.open(shards[0])
    places = [cache.path(shard) for shard in shards[:3]]
    for age, place in zip((10, 20, 30), places, strict=True):
        os.utime(place, (age, age))
    cache.path(shards[0])  # opened again: shard 1 is now the oldest
    cache.path(shards[3])
    assert {path.name for path in kept(cache)} == {places[0].name, places[2].name, cache._place(shards[3]).name}
    cache.bound_bytes = 1
    cache.path(shards[1])
    assert kept(cache) == [places[1]] and server.asked == {"0.tar": 1, "1.tar": 2, "2.tar": 1, "3.tar": 1}
    assert os.pread(held, 2000, 0) == bytes(1000)
    os.close(held)


def test_the_bound_holds_while_many_are_fetched(server: Served, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 3500)
    for number in range(12):
        assert cache.path(server.offer(f"{number}.tar", bytes([number]) * 1000)).stat().st_size == 1000
        assert sum(path.stat().st_size for path in kept(cache)) == min(number + 1, 3) * 1000


def test_a_folder_that_cannot_be_written_is_the_users_to_mend(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = server.offer("a.tar", CONTENT)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*/file/cache/"):
        Cache(tmp_path / "file" / "cache", GB).path(shard)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = Cache(tmp_path, GB)
    monkeypatch.setattr("lth_scale.files.os.fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*tar: No space left on device; nothing was lost, make room"):
        cache.path(shard)
    assert server.asked == {"a.tar": 1} and not list(tmp_path.glob("*.tar")) + list(tmp_path.glob(".*.tmp"))


def test_the_folder_is_in_the_users_cache_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_folder() == Path("/somewhere/lth_scale/shards")


# Several processes


def fetch(cache: Cache, shard: Shard, answer: Connection) -> None:
    answer.send(hashlib.sha256(cache.path(shard).read_bytes()).hexdigest())


def start(cache: Cache, shard: Shard) -> tuple[object, Connection]:
    context = _context()
    mine, theirs = context.Pipe()
    process = context.Process(target=fetch, args=(cache, shard, theirs))  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    return process, mine


@pytest.mark.slow
def test_of_four_processes_one_fetches(server: Served, cache: Cache) -> None:
    def slowly(handler: BaseHTTPRequestHandler, content: bytes, number: int) -> None:
        RELEASED.wait(0.3)  # the others ask meanwhile
        serve_whole(handler, content, number)

    server.behaviour = slowly
    shard = server.offer("a.tar", CONTENT)
    started = [start(cache, shard) for _ in range(4)]
    assert [answer.recv() for _, answer in started] == [shard.sha256] * 4
    for process, _ in started:
        process.join()  # type: ignore[attr-defined]
    assert server.asked == {"a.tar": 1}


@pytest.mark.slow
def test_what_a_killed_process_was_fetching_is_fetched_anew(server: Served, cache: Cache) -> None:
    asked = threading.Event()

    def stall_at_first(handler: BaseHTTPRequestHandler, content: bytes, number: int) -> None:
        asked.set()
        (serve_whole if number else stall)(handler, content, number)

    server.behaviour = stall_at_first
    shard = server.offer("a.tar", CONTENT)
    process, _ = start(cache, shard)
    assert asked.wait(60)
    process.kill()  # type: ignore[attr-defined]
    process.join()  # type: ignore[attr-defined]
    assert cache.path(shard).read_bytes() == CONTENT
    assert kept(cache) == [cache.path(shard)]


# The whole way, from a server to batches


def offered(server: Served, folder: Path, pack: Callable[[bytes], bytes] = bytes) -> Index:
    files, facts = {}, {}
    for split in indexing.read(folder).splits.values():
        for shard in split:
            found = server.offer(shard.file, pack((folder / shard.file).read_bytes()))
            (folder / shard.file).unlink()
            files[shard.file], facts[found.file] = found.file, found
    index = moved(folder, files)
    splits = {
        split: tuple(replace(facts[shard.file], samples=shard.samples) for shard in shards)
        for split, shards in index.splits.items()
    }
    changed = replace(index, splits=splits)
    indexing.write(folder, changed)
    return changed


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_batches_from_a_server_that_drops_are_those_from_the_folder(
    tmp_path: Path, server: Served, pack: Callable[[bytes], bytes]
) -> None:
    make_folder(tmp_path / "folder", [9, 6, 11, 7])
    wanted = [(x.clone(), y) for x, y in batches(opened(tmp_path / "folder"))]
    offered(server, tmp_path / "folder", pack)
    server.behaviour = drop_twice
    dataset = opened(tmp_path / "folder", cache=str(tmp_path / "cache"))
    for (x, y), (again, labels) in zip(wanted, batches(dataset), strict=True):
        assert x.equal(again) and y.equal(labels)
    assert set(server.asked.values()) == {3} and len(server.asked) == 4
    again_by_workers = batches(opened(tmp_path / "folder", cache=str(tmp_path / "cache"), workers=2))
    for (x, _), (again, _) in zip(wanted, again_by_workers, strict=True):
        assert x.equal(again)
    assert set(server.asked.values()) == {3}


def test_a_server_that_fails_stops_or_is_replaced_as_any_fault(tmp_path: Path, server: Served) -> None:
    make_folder(tmp_path / "folder", [9, 6], test=[3, 4])
    offered(server, tmp_path / "folder")
    server.behaviour = refuse
    where = {"cache": str(tmp_path / "cache")}
    with pytest.raises(UserError, match=r"^http://.*/test-000000.tar: sample 0 of test .* it cannot be fetched .*404"):
        list(evaluation(opened(tmp_path / "folder", **where), "test", None, 0, 1))
    server.behaviour = lambda handler, content, number: (refuse if "000000" in handler.path else serve_whole)(
        handler, content, number
    )
    server.asked.clear()
    ((_, labels),) = evaluation(opened(tmp_path / "folder", faults=0.9, **where), "test", None, 0, 1)
    assert labels.tolist() == [3, 3, 3, 3, 4, 5, 6]
    assert server.asked == {"test-000000.tar": 1, "test-000001.tar": 1}  # given up once, not once a sample
