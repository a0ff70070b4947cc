"""Files are the truth: written to a temporary name, fsynced, moved into place. Every write goes through here."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lth_scale.errors import UserError

if TYPE_CHECKING:
    import torch

CHUNK = 1 << 22


def _write_all(handle: int, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that the names in it survive a crash."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary(path: Path) -> Path:
    """A name beside ``path`` that no other writer uses and that readers ignore."""
    return path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the system's refusal of a write into a UserError that names ``path`` and what to do."""
    try:
        yield
    except OSError as error:
        mending = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
        raise UserError(
            f"cannot write {path}: {error.strerror}; nothing was lost, {mending} and run the same command again"
        ) from error


def make_folder(folder: Path) -> None:
    """Make a folder and its parents so that a crash keeps their names; those that exist are left alone."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def _place(path: Path, data: bytes, move: Callable[[Path, Path], None]) -> None:
    with explained(path):
        make_folder(path.parent)
        scratch = temporary(path)
        try:
            handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                _write_all(handle, data)
                os.fsync(handle)
            finally:
                os.close(handle)
            move(scratch, path)
            sync_folder(path.parent)
        finally:
            scratch.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises UserError when the disk is full."""
    _place(path, data, os.replace)


def create_bytes(path: Path, data: bytes) -> bool:
    """Write a file whole unless there is one; whether it was written. Of many at the same moment, one succeeds."""
    try:
        _place(path, data, _link)
        return True
    except UserError as error:
        if isinstance(error.__cause__, FileExistsError) and path.is_file():  # not: a file where a folder should be
            return False
        raise


def create_json(path: Path, value: Any) -> bool:
    """Write a JSON file whole unless there is one; whether it was written."""
    return create_bytes(path, _json(value))


def _link(scratch: Path, path: Path) -> None:
    """Exclusive on every file server, and never seen half written."""
    try:
        os.link(scratch, path)
    except OSError as error:
        if scratch.stat().st_nlink == 2:  # done, but NFS has lost the answer and asked again
            return
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))  # no links here: empty for a moment
        os.replace(scratch, path)


@contextmanager
def placing(path: Path) -> Iterator[BinaryIO]:
    """A file to write piece by piece (and read back): it comes into place, whole and synced, when the block succeeds.

    Raises UserError when the system refuses to make, sync or move it; errors of the block itself pass as they are.
    """
    scratch = temporary(path)
    try:
        with explained(path):
            make_folder(path.parent)
            stream = scratch.open("x+b")
        with stream:
            yield stream
            with explained(path):
                stream.flush()
                os.fsync(stream.fileno())
        with explained(path):
            os.replace(scratch, path)
            sync_folder(path.parent)
    finally:
        scratch.unlink(missing_ok=True)


def stream_bytes(path: Path, pieces: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write a new file, where nobody reads yet, piece by piece, and sync it; (bytes, hex SHA-256). Raises OSError."""
    size, digest = 0, hashlib.sha256()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for block in _blocks(pieces):
            _write_all(handle, block)
            digest.update(block)
            size += len(block)
        os.fsync(handle)
    finally:
        os.close(handle)
    return size, digest.hexdigest()


def _blocks(pieces: Iterable[bytes | memoryview]) -> Iterator[bytearray]:
    """Small pieces joined, so that they cost no write each."""
    block = bytearray()
    for piece in pieces:
        if block and len(block) + len(piece) > CHUNK:
            yield block
            block = bytearray()
        block += piece
    yield block


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all, keys in the order given."""
    write_bytes(path, _json(value))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def read_json(path: Path) -> Any:
    """Read a JSON file; raises UserError naming a missing or damaged one."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); remove it to have it made anew") from None


def filled(path: Path) -> bool:
    """Whether a file is there and holds something: without links :func:`create_bytes` may leave an empty one."""
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def append_line(path: Path, line: str) -> None:
    """Append one line to a log in a single write; a reader ignores a last line without its newline."""
    with explained(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _write_all(handle, (line + "\n").encode())
        finally:
            os.close(handle)


def sync_file(path: Path) -> None:
    """fsync one existing file."""
    with explained(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_folder(folder: Path) -> None:
    """Delete a folder: renamed first, so that a crash half way never leaves a partial one under its own name."""
    if folder.exists():
        trash = temporary(folder)
        with explained(folder):
            os.replace(folder, trash)
        shutil.rmtree(trash, ignore_errors=True)


def remove_temporaries(folder: Path) -> None:
    """Delete what writers that were killed have left in a folder; call it only where no other writer can be."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    for piece in pieces(path):
        digest.update(piece)
    return digest.hexdigest()


def pieces(path: Path) -> Iterator[bytes]:
    """A file's bytes, at most CHUNK at a time."""
    with path.open("rb") as stream:
        while piece := stream.read(CHUNK):
            yield piece


def sha256_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hex SHA-256 over names, dtypes, shapes and bytes of tensors, in name order; -0.0 and +0.0 differ."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Write a safetensors file atomically; returns its bytes."""
    from safetensors.torch import save

    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, dict(metadata))
    write_bytes(path, data)
    return data


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file: (tensors, metadata). Raises UserError naming a missing or damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stream:
            return {name: stream.get_tensor(name) for name in stream.keys()}, dict(stream.metadata() or {})  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or remove it to have it made anew") from None
