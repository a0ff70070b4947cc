"""Name -> implementation tables. Adding a model, data set, criterion, scope, arm or recipe is one entry in one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from lth_scale.errors import unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """A table of named implementations for one config key.

    Args:
        key: the config key its names are values of, such as ``model.name``; used in error messages.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that enters its object under ``name``."""

        def enter(entry: T) -> T:
            assert name not in self._entries, f"{self.key}: {name} is registered twice"
            self._entries[name] = entry
            return entry

        return enter

    def __getitem__(self, name: str) -> T:
        """The entry; raises UserError naming the key, the value and the valid names."""
        if name not in self._entries:
            raise unknown(self.key, name, self._entries)
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries
