"""Finding and fetching a data set's own files."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from lth_scale.errors import UserError

TIMEOUT_SECONDS = 30.0


def locate(source: Path, names: Sequence[str]) -> Path:
    """The first of ``names`` in ``source`` or a folder below it, as torchvision makes; UserError if none is there."""
    if not source.exists():
        raise UserError(f"--source {source} does not exist")
    for folder in (source, *sorted(source.glob("*/raw")), *sorted(path for path in source.glob("*") if path.is_dir())):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise UserError(f"--source {source} holds no {names[0]} (also tried: {', '.join(names[1:]) or 'nothing else'})")


def download(urls: Sequence[str], folder: Path, md5: str) -> None:
    """Fetch one file into ``folder`` from the first address that serves it; UserError naming --source if none does."""
    from torchvision.datasets.utils import download_url

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    errors = []
    try:
        for url in urls:
            try:
                download_url(url, str(folder), md5=md5)
                return
            except (OSError, RuntimeError) as error:
                errors.append(f"{url}: {error}")
    finally:
        socket.setdefaulttimeout(before)
    raise UserError(f"cannot download ({'; '.join(errors)}); give the files' folder with --source")
