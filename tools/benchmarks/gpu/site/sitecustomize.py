"""Hides transformers from the programs of the campaign.

With transformers 5 beside pycocotools, mmpretrain 1.2.0 turns on multimodal models that it cannot
import (``TypeError: NoneType takes no arguments``).
"""
import importlib_metadata

_distribution = importlib_metadata.distribution


def _without_transformers(name: str):
    if name == 'transformers':
        raise importlib_metadata.PackageNotFoundError(name)
    return _distribution(name)


importlib_metadata.distribution = _without_transformers
