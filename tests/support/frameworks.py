"""The frameworks, and how a test names the one that it needs in its own process."""

from __future__ import annotations

import pytest

# The top-level modules that show that a process has loaded the framework.
FRAMEWORKS = {"torch": {"torch"}, "tensorflow": {"tensorflow", "keras"}}

# `@pytest.mark.parametrize("backend", EACH_BACKEND)`: each case with its framework's marker.
EACH_BACKEND = [pytest.param(name, marks=getattr(pytest.mark, name)) for name in FRAMEWORKS]
