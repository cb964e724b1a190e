"""Parameters and multiply-adds of a network described by a config.

One multiply-add counts as one FLOP. Only products of features with weights, learned or computed
from the input, are counted: convolutions and linear layers without their bias, matrix products,
and the aggregations of this package. Norms (which fold into convolutions), pooling, up-sampling,
activations, softmax, additions and reshaping count as zero. C-volution's gate counts as the 3x3
convolution that defines it, although the layer has a shortcut for its mean. A continuous
convolution counts as a direct one, plus the sampling of its kernel.
"""
import functools
from collections import Counter
from contextlib import contextmanager
from typing import Dict, Iterator, List, NamedTuple, Sequence, Tuple, Union

import torch
from mmengine.analysis import FlopAnalyzer, parameter_count
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmcontext.layers import CVolution2d
from mmcontext.layers.ckconv import CKConvNd


class Complexity(NamedTuple):
    """What :func:`count_complexity` returns.

    Attributes:
        params (int): Number of parameters, auxiliary heads included.
        flops (int): Multiply-adds of one image's forward pass, post-processing excluded.
        by_operator (dict[str, int]): The same, split by kind of operator.
        training_params (int): How many of ``params`` belong to auxiliary heads, which are used
            in training only.
    """
    params: int
    flops: int
    by_operator: Dict[str, int]
    training_params: int


def _shape(value) -> List[int]:
    return value.type().sizes()


def _numel(value) -> int:
    count = 1
    for size in _shape(value):
        count *= size
    return count


def _local_aggregation(inputs: Sequence, outputs: Sequence) -> int:
    # w is [B, G, K*K, Ho, Wo]: each output element sums K*K products.
    return _numel(outputs[0]) * _shape(inputs[1])[2]


def _fused_involution(inputs: Sequence, outputs: Sequence) -> Dict[str, int]:
    # Includes the 1x1 convolution that makes the kernels. weight is [G*K*K, C_r].
    batch, _, height, width = _shape(outputs[0])
    taps = 1
    for size in inputs[5].node().inputs():
        taps *= size.toIValue()
    return Counter(conv=batch * height * width * _numel(inputs[2]),
                   local_aggregation=_numel(outputs[0]) * taps)


# Custom operators, which mmengine's counter does not know.
_HANDLES = {
    'mmcontext::local_aggregation': _local_aggregation,
    'mmcontext::fused_involution': _fused_involution,
}
# What mmengine's counter counts and this one does not.
_NOT_COUNTED = {
    'batch_norm', 'group_norm', 'layer_norm', 'instance_norm', 'adaptive_avg_pool2d',
    'upsample_nearest2d', 'upsample_bilinear2d'
}


def _convolved_gate(layer: CVolution2d, x: torch.Tensor) -> torch.Tensor:
    return layer.gate(x).mean(dim=(2, 3), keepdim=True)


@contextmanager
def _as_defined(model: nn.Module) -> Iterator[None]:
    """Context in which C-volutions run the convolution of their gate."""
    layers = [layer for layer in model.modules() if isinstance(layer, CVolution2d)]
    for layer in layers:
        layer.gate_values = functools.partial(_convolved_gate, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.gate_values


def count_complexity(model: nn.Module, inputs: Union[torch.Tensor, Tuple]) -> Complexity:
    """Count the parameters and multiply-adds of one forward pass in eval mode.

    Args:
        model (nn.Module): The network; left in eval mode.
        inputs (Tensor | tuple): Arguments of its ``forward``.

    Returns:
        Complexity: The counts.
    """
    model.eval()
    if any(isinstance(module, CKConvNd) for module in model.modules()):
        # Their first input changes buffers, which cannot be traced.
        with torch.no_grad():
            model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    analyzer = FlopAnalyzer(model, inputs)
    analyzer.set_op_handle(**_HANDLES)
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analyzer.tracer_warnings('none')
    with torch.no_grad(), _as_defined(model):
        by_operator = {name: int(flops) for name, flops in analyzer.by_operator().items()
                       if name not in _NOT_COUNTED}
    params = parameter_count(model)
    return Complexity(
        params[''], sum(by_operator.values()), by_operator, params.get('auxiliary_head', 0))


def build_model(cfg: Config) -> nn.Module:
    """Build a config's model as it is, on the CPU, in the config's own scope.

    Args:
        cfg (Config): A config with ``model`` and ``default_scope``.

    Returns:
        nn.Module: The model, not initialised from checkpoints, with BN instead of SyncBN so that
        it runs in one process.

    Raises:
        ValueError: If the config has no model.
    """
    if 'model' not in cfg:
        raise ValueError(f'{cfg.filename} has no model: it is not the config of a network')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        return revert_sync_batchnorm(MODELS.build(cfg.model))


def _detection_samples(size: Tuple[int, int]) -> list:
    from mmdet.structures import DetDataSample
    return [DetDataSample(metainfo=dict(
        img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size,
        scale_factor=(1., 1.)))]


def config_complexity(cfg: Config, shape: Sequence[int]) -> Complexity:
    """Count the parameters and multiply-adds of a config's model.

    A two-stage detector runs its second stage on the proposals of its untrained first stage:
    ``max_per_img`` of the test config if the image is large enough.

    Args:
        cfg (Config): Config of a classifier, detector, segmentor or sequence network.
        shape (Sequence[int]): Size of the input without batch and channels: (H, W) for
            images, (length, ) for sequences.

    Returns:
        Complexity: The counts, for one image.

    Raises:
        ValueError: If the config has no model.
    """
    model = build_model(cfg)
    channels = cfg.model.backbone.get('in_channels', 3)
    inputs = torch.zeros(1, channels, *shape)
    if hasattr(model, 'bbox_head') or hasattr(model, 'roi_head'):
        # The tracer accepts tensors only.
        model.forward = functools.partial(
            model.forward, data_samples=_detection_samples(tuple(shape)))
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        return count_complexity(model, (inputs, ))
