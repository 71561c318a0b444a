"""What a run is asked to do."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from fanin.benchmarks.harness.request import Options
from fanin.benchmarks.records.base import Precision


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_nothing_is_written_that_json_has_no_word_for(value):
    assert Options(checkpoint_minutes=5.0).checkpoint_minutes == 5.0
    with pytest.raises(ValidationError, match="finite number"):
        Options(checkpoint_minutes=value)
    with pytest.raises(ValidationError, match="finite number"):
        Precision(at_1=value, at_3=value, at_5=value)
