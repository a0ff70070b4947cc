"""The configuration: frozen dataclasses, one per component, each checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, field

from lth_scale.config.connectivity import Connectivity as Connectivity
from lth_scale.config.hardware import Hardware as Hardware
from lth_scale.config.tickets import Prune as Prune
from lth_scale.config.tickets import Rates as Rates
from lth_scale.config.tickets import Reinit as Reinit
from lth_scale.config.tickets import Report as Report
from lth_scale.config.tickets import Rewind as Rewind
from lth_scale.config.tickets import Run as Run
from lth_scale.config.tickets import Seeds as Seeds
from lth_scale.config.tracking import Tracking as Tracking
from lth_scale.config.training import Data as Data
from lth_scale.config.training import Model as Model
from lth_scale.config.training import Train as Train
from lth_scale.config.transfer import Transfer as Transfer
from lth_scale.config.transfer import labelled as labelled


@dataclass(frozen=True)
class Config:
    """One experiment."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    train: Train = field(default_factory=Train)
    prune: Prune = field(default_factory=Prune)
    rewind: Rewind = field(default_factory=Rewind)
    run: Run = field(default_factory=Run)
    reinit: Reinit = field(default_factory=Reinit)
    transfer: Transfer = field(default_factory=Transfer)
    connectivity: Connectivity = field(default_factory=Connectivity)
    seeds: Seeds = field(default_factory=Seeds)
    report: Report = field(default_factory=Report)
    hardware: Hardware = field(default_factory=Hardware)
    tracking: Tracking = field(default_factory=Tracking)
