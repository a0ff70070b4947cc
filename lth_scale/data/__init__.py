"""Data: any data set as WebDataset shards with an index, loaded into memory, and served in a reproducible order."""

from lth_scale.data import cifar as _cifar
from lth_scale.data import digits as _digits
from lth_scale.data import folder as _folder
from lth_scale.data import idx as _idx
from lth_scale.data import svhn as _svhn
from lth_scale.data.batches import Batches as Batches
from lth_scale.data.batches import accumulation as accumulation
from lth_scale.data.batches import steps_per_epoch as steps_per_epoch
from lth_scale.data.dataset import SPLITS as SPLITS
from lth_scale.data.dataset import Dataset as Dataset
from lth_scale.data.dataset import Description as Description
from lth_scale.data.dataset import Split as Split
from lth_scale.data.dataset import SplitName as SplitName
from lth_scale.data.definition import datasets as datasets
from lth_scale.data.loading import default_dir as default_dir
from lth_scale.data.loading import describe as describe
from lth_scale.data.loading import load as load
from lth_scale.data.preparing import prepare as prepare
from lth_scale.data.preparing import verify as verify
from lth_scale.data.serving import AnyDataset as AnyDataset
from lth_scale.data.serving import Training as Training
from lth_scale.data.serving import check as check
from lth_scale.data.serving import evaluation_batches as evaluation_batches
from lth_scale.data.serving import training_batches as training_batches
from lth_scale.data.streamed import folder as _jpeg_folder
from lth_scale.data.streamed import foreign as _webdataset
from lth_scale.data.streamed import imagenet as _imagenet

# Imported for their entries in the registry; one line per family of data sets.
FAMILIES = (_digits, _idx, _cifar, _svhn, _folder, _imagenet, _jpeg_folder, _webdataset)
