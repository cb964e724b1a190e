import pytest
import torch
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def default_scope_kept():
    """A test that enters a library's scope does not affect the next one."""
    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


@pytest.fixture
def nan_filled_memory():
    """torch.empty contains NaN, to reveal elements that were never written."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
