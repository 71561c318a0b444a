"""Data sets: where they come from, how they are checked, and the stream of training batches.

The way through the folder: `registry.load` names a data set, its factory (`wordnet/` for the
embedded ones, `folder.load_folder` for one's own files) returns a `Dataset`, and `Batches` turns
its training half into the batches that every backend sees. Nothing here knows a framework.
"""

from fanin.datasets.batches import Batch, Batches, evaluation_blocks
from fanin.datasets.catalogue import PUBLISHED, canonical_name, propensity, spellings
from fanin.datasets.dataset import DataError, Dataset
from fanin.datasets.folder import feature_kinds, find_folder
from fanin.datasets.registry import available, load, unknown

__all__ = [
    "PUBLISHED",
    "Batch",
    "Batches",
    "DataError",
    "Dataset",
    "available",
    "canonical_name",
    "evaluation_blocks",
    "feature_kinds",
    "find_folder",
    "load",
    "propensity",
    "spellings",
    "unknown",
]
