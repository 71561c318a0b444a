"""A predictor as an ONNX file, for the estimator and for saved models."""

from __future__ import annotations

import os
from pathlib import Path

from fanin.backends.estimator.predictor import BlockPredictor
from fanin.backends.words.setup import OneVersusRestSetup


def export_predictor(
    predictor: BlockPredictor, path: str | os.PathLike[str], top_k: int | None
) -> None:
    """Write a predictor as `onnx_export` does. Inputs of a model of sparse features are `columns`
    and `values`, else `features`; with `top_k`, outputs are the best `scores` and `label_ids`, else
    all `scores`. ValueError where `top_k` is out of range, ImportError without ONNX."""
    from fanin.backends.onnx_export import export, export_one_versus_rest

    setup, arrays, path = predictor.setup, predictor.arrays(), Path(path)
    if isinstance(setup, OneVersusRestSetup):
        export_one_versus_rest(setup, arrays, path, top_k=top_k)
    else:
        export(setup, arrays, path, top_k=top_k, sparse_features=setup.sparse_features)
