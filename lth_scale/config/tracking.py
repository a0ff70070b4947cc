"""Who is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Tracking:
    """Weights & Biases. Keys come from W&B's own places only: WANDB_API_KEY, or what ``wandb login`` has stored.

    Args:
        wandb: online, offline (``lth sync`` uploads later), off; auto is online where W&B has a key, else offline.
        project: unset: WANDB_PROJECT, else lth_scale.
        entity: a team or a user; unset: W&B's default.
        tags: further tags.
        artifacts: what is kept there beside measures: tickets (theta_k once a replicate, and every mask), checkpoints
            (the weights that each round of the ticket ends with, too), off.
    """

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    project: str = ""
    entity: str = ""
    tags: tuple[str, ...] = ()
    artifacts: Literal["off", "tickets", "checkpoints"] = "tickets"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", tuple(map(str, self.tags)))
