from typing import Optional

from mmcv.cnn import build_activation_layer, build_norm_layer
from torch import nn


def conv_norm_act(in_channels: int, out_channels: int, kernel_size, norm_cfg: Optional[dict],
                  act_cfg: Optional[dict], **conv_options) -> nn.Sequential:
    """Convolution, norm (BN unless ``norm_cfg`` says otherwise) and activation.

    ``ConvModule`` would do, but warns of every convolution bias in front of a norm, and some of
    the published layers have one.
    """
    modules = [
        nn.Conv2d(in_channels, out_channels, kernel_size, **conv_options),
        build_norm_layer(norm_cfg or dict(type='BN'), out_channels)[1]
    ]
    if act_cfg is not None:
        modules.append(build_activation_layer(act_cfg))
    return nn.Sequential(*modules)
