"""Files that are made exclusively, on file servers that lose answers or know no links."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lth_scale import files


def test_a_link_whose_answer_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS asks again when an answer is lost, and is told that the file is there: its own."""
    link = os.link

    def twice(scratch: Path, path: Path) -> None:
        link(scratch, path)
        link(scratch, path)

    monkeypatch.setattr(os, "link", twice)
    assert files.create_bytes(tmp_path / "claim", b"mine")
    assert not files.create_bytes(tmp_path / "claim", b"another's"), "the count of links tells them apart"
    assert (tmp_path / "claim").read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_where_there_are_no_links(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(scratch: Path, path: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refused)
    assert files.create_json(tmp_path / "claim", {"pid": 1})
    assert not files.create_json(tmp_path / "claim", {"pid": 2})
    assert files.read_json(tmp_path / "claim") == {"pid": 1} and len(list(tmp_path.iterdir())) == 1
    assert files.filled(tmp_path / "claim") and not files.filled(tmp_path / "none")
