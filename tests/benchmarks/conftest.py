"""What tests of several rooms share: a folder with data and tasks."""

import json

import pytest
from fakes import TASKS, write_dataset


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data and tasks."""
    folder = tmp_path_factory.mktemp("harness")
    write_dataset(folder / "data")
    (folder / "tasks.json").write_text(json.dumps(TASKS))
    return folder
