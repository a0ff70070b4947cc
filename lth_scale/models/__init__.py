"""Networks: a table of models, one family per file, and what pruning must know about any of them."""

from __future__ import annotations

from lth_scale.models import channels as channels
from lth_scale.models import conv, lenet, resnet_cifar, vgg, vit  # noqa: F401  (each enters its models in the table)
from lth_scale.models.base import models as models
from lth_scale.models.building import build as build
from lth_scale.models.building import redraw as redraw
from lth_scale.models.building import skeleton as skeleton
from lth_scale.models.connectivity import connected as connected
from lth_scale.models.flops import FORWARD_AND_BACKWARD as FORWARD_AND_BACKWARD
from lth_scale.models.flops import macs as macs
from lth_scale.models.flops import macs_fixed as macs_fixed
from lth_scale.models.flops import macs_left as macs_left
from lth_scale.models.parameters import Prunable as Prunable
from lth_scale.models.parameters import Unprunable as Unprunable
from lth_scale.models.parameters import decay_groups as decay_groups
from lth_scale.models.parameters import has_batchnorm as has_batchnorm
from lth_scale.models.parameters import has_dropout as has_dropout
from lth_scale.models.parameters import prunable as prunable
from lth_scale.models.parameters import unprunable as unprunable
