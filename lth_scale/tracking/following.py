"""``python -m lth_scale.tracking.following FOLDER PID``: send a run while process PID logs it, and then the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from lth_scale.processes import end
from lth_scale.tracking.uploading import CLIENT, LOGS, link, linked, sending, sent

POLL = 0.5
RETRY = 15.0
GRACE = 600.0  # seconds for the rest once the round has ended, well or badly


def main(folder: Path, owner: int) -> None:
    """End when all is sent, or some minutes after the owner; `lth sync` sends what is left then."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while not (found := list(folder.glob(LOGS))):
        if _gone(owner):
            return
        time.sleep(POLL)
    with sending(found[0]):
        environment = {**os.environ, "WANDB_DIR": str(folder)}  # the client's own logs
        client = subprocess.Popen([*CLIENT, "beta", "sync", "--live", str(found[0])], env=environment)
        try:
            _watch(client, owner)
        finally:
            if client.poll() is None:
                end(client)
        _link(found[0])


def _watch(client: subprocess.Popen[bytes], owner: int) -> None:
    deadline = float("inf")
    while client.poll() is None and time.monotonic() < deadline:
        if deadline == float("inf") and _gone(owner):
            deadline = time.monotonic() + GRACE
        time.sleep(POLL)


def _link(log: Path) -> None:
    """What the run starts from may be on its way yet, sent by another follower."""
    deadline = time.monotonic() + GRACE
    while sent(log).exists() and not linked(log).exists() and (left := deadline - time.monotonic()) > 0:
        if link([log], left):
            time.sleep(RETRY)


def _gone(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
