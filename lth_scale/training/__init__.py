"""Training: the only room that knows Lightning."""

import os

from lth_scale.training.round import Job as Job
from lth_scale.training.round import Trained as Trained
from lth_scale.training.round import train_round as train_round
from lth_scale.training.strategies import on_gpu as on_gpu

# Lightning sets this at import; with it torch's Adam opens the driver library anew at every CPU step (40 us each).
os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
