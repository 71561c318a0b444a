"""A person's own torch model with a layer of fanin's on top, as one ONNX file."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import scipy.sparse as sp
import torch

from fanin.backends.torch import FixedFanInLinear, FusedFanIn
from fanin.backends.torch.tools.onnx import translations

pytestmark = pytest.mark.torch


def exported(model, example, path):
    torch.onnx.export(
        model,
        (example,),
        path,
        input_names=["features"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        custom_translation_table=translations(),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path)
    return lambda x: session.run(None, {"features": x.numpy()})[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "head",
    [
        lambda: FusedFanIn(16, labels=50, fan_in=4),
        lambda: FixedFanInLinear(16, labels=50, fan_in=1, bias=False),
        lambda: FixedFanInLinear(70_000, labels=50, fan_in=4),  # indices are uint32
        lambda: FusedFanIn(16, labels=50, fan_in=4, recipe="best"),
        lambda: FusedFanIn(16, labels=50, fan_in=4, recipe="best", group_size=16),
    ],
    ids=["fused", "without a bias", "wide", "scale and dictionary", "groups"],
)
def test_scores_are_those_of_the_module(head, tmp_path):
    head = head()
    if head.feature_scale is not None:
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((80, 16), np.float32), rng.random((80, 50)) < 0.1
        head.start_from(x, sp.csr_array(y))
    encoder = torch.nn.Sequential(torch.nn.Linear(8, head.in_features), torch.nn.ReLU())
    model = torch.nn.Sequential(encoder, head).eval()
    run = exported(model, torch.randn(3, 8), tmp_path / "model.onnx")
    for batch in (1, 3, 40):
        x = torch.randn(batch, 8)
        with torch.no_grad():
            np.testing.assert_allclose(run(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_another_view_is_refused(tmp_path):
    class Bits(torch.nn.Module):
        def forward(self, x):
            return x.view(torch.int32)

    with pytest.raises(Exception, match="keep such a view out of the exported model"):
        exported(Bits(), torch.randn(3, 8), tmp_path / "model.onnx")
