import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def instances_by_name():
    """The dictionaries in which mmengine keeps default scopes and visualizers."""
    classes = [DefaultScope, Visualizer]
    for cls in classes:
        classes.extend(cls.__subclasses__())
    return {cls: cls._instance_dict for cls in classes}


@pytest.fixture(autouse=True)
def scopes_and_visualizers_kept():
    """A test that enters a library's scope, or whose visualizer writes into its folder, does not
    affect the next one."""
    before = {cls: dict(instances) for cls, instances in instances_by_name().items()}
    yield
    for cls, instances in instances_by_name().items():
        instances.clear()
        instances.update(before.get(cls, {}))


@pytest.fixture
def nan_filled_memory():
    """torch.empty contains NaN, to reveal elements that were never written."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
