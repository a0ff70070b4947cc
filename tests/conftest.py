"""What every test shares: one thread, reproducible properties, no user's cache."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Before torch and matplotlib are imported, here and in child processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))  # its font list takes seconds to make
os.environ["WANDB_MODE"] = "disabled"  # but for the tests of tracking
os.environ.pop("WANDB_API_KEY", None)

import pytest
import torch
from hypothesis import HealthCheck, settings

# Slow machines fail no property; the same examples everywhere, so that a red test is red for everyone.
settings.register_profile("project", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared data goes to a folder of this test session, for child processes too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """A power cut is no matter here, and thousands of fsyncs take minutes on some disks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield
