"""Atomic, checksummed, strategy-neutral training states: flat ranges of named tensors per rank, a manifest last."""

from __future__ import annotations

from lth_scale.checkpoint.keeping import candidates, final, latest, opened, publish, remove_older, sound
from lth_scale.checkpoint.layout import MANIFEST
from lth_scale.checkpoint.source import Composite, Entry, Masked, Source, State
from lth_scale.checkpoint.staging import Staging
from lth_scale.checkpoint.stored import Stored, load_manifest, load_state
from lth_scale.checkpoint.writing import Part, save, save_state

__all__ = [
    "MANIFEST",
    "Composite",
    "Entry",
    "Masked",
    "Part",
    "Source",
    "Staging",
    "State",
    "Stored",
    "candidates",
    "final",
    "latest",
    "load_manifest",
    "load_state",
    "opened",
    "publish",
    "remove_older",
    "save",
    "save_state",
    "sound",
]
