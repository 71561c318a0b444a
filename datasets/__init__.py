"""Data sets: where they come from, how they are checked, and the stream of training batches.

The way through the folder: `registry.load` finds a data set by its name. A function (in `wordnet/`
for the embedded ones, `folder.load_folder` for files of the user) returns a `Dataset`. `Batches`
turns its training half into the batches that every backend sees. No framework is imported here.
"""

from fanin.datasets.batches import Batch, Batches, evaluation_blocks
from fanin.datasets.catalogue import PUBLISHED, canonical_name, propensity, spellings
from fanin.datasets.dataset import DataError, Dataset, Features
from fanin.datasets.folder import feature_kinds, find_folder
from fanin.datasets.registry import available, has_sparse_features, load, unknown

__all__ = [
    "PUBLISHED",
    "Batch",
    "Batches",
    "DataError",
    "Dataset",
    "Features",
    "available",
    "canonical_name",
    "evaluation_blocks",
    "feature_kinds",
    "find_folder",
    "has_sparse_features",
    "load",
    "propensity",
    "spellings",
    "unknown",
]
