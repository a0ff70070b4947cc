"""Energy where the machine tells it: Intel's and AMD's RAPL counters, which Linux has under /sys/class/powercap."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
SOURCE = "RAPL, whole packages, idle power included"


@dataclass
class Meter:
    """Joules that all processor packages have used since the first reading.

    Args:
        counters: their ``energy_uj`` files, microjoules that wrap round, with the number that each wraps at.
    """

    counters: dict[Path, int]

    def __post_init__(self) -> None:
        self._last = {path: _number(path) for path in self.counters}
        self._joules = 0.0

    def joules(self) -> float:
        """So far; call it more often than a counter wraps round, which takes minutes."""
        for path, largest in self.counters.items():
            now = _number(path)
            self._joules += ((now - self._last[path]) % (largest + 1)) / 1e6
            self._last[path] = now
        return self._joules


def meter(powercap: Path = POWERCAP) -> Meter | None:
    """Of this machine; None where no counter can be read: virtual machines hide them, and Linux shows them to root."""
    try:
        packages = sorted(powercap.glob("intel-rapl:[0-9]*"))
        found = {
            path / "energy_uj": _number(path / "max_energy_range_uj")
            for path in packages
            if ":" not in path.name.removeprefix("intel-rapl:") and (path / "name").read_text().startswith("package")
        }
        return Meter(found) if found else None
    except (OSError, ValueError):
        return None


def _number(path: Path) -> int:
    return int(path.read_text())
