from functools import lru_cache

import pytest


@pytest.fixture(autouse=True, scope='session')
def read_upstream_zoos_once():
    """mmengine reads all metafiles of a library for every ``_base_`` from it, which would take
    half of the time of these tests."""
    from mmengine.config import utils
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, 'load', lru_cache(maxsize=None)(utils.load))
        yield
