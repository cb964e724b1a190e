"""Initialisation without mmengine's line for every parameter."""
from mmengine.logging import MMLogger
from torch import nn


def initialise(module: nn.Module) -> nn.Module:
    """Run ``init_weights`` of a module without logging; on the meta device, do nothing.

    Args:
        module: A ``BaseModule``.

    Returns:
        The module.
    """
    if next(module.parameters()).is_meta:
        return module
    logger = MMLogger.get_current_instance()
    disabled, logger.disabled = logger.disabled, True
    try:
        module.init_weights()
    finally:
        logger.disabled = disabled
    return module
