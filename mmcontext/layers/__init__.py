"""The operators as layers with the signature of ``Conv2d``."""
from mmcontext.layers.ckconv import (
    CKConv1d,
    CKConv2d,
    CKConv3d,
    SeparableCKConv1d,
    SeparableCKConv2d,
    SeparableCKConv3d,
    freeze_kernels,
    set_resolution,
)
from mmcontext.layers.coconv import CoConv2d
from mmcontext.layers.cot import CoT2d
from mmcontext.layers.cvolution import CVolution2d
from mmcontext.layers.flexconv import (
    FlexConv1d,
    FlexConv2d,
    FlexConv3d,
    SeparableFlexConv1d,
    SeparableFlexConv2d,
    SeparableFlexConv3d,
)
from mmcontext.layers.involution import Involution2d
from mmcontext.layers.kernel_nets import (
    SIREN,
    FourierNet,
    GaborNet,
    KernelMLP,
    MAGNet,
    RandomFeatureNet,
    RandomFourierNet,
)
from mmcontext.layers.pointconv import PointCKConv, PointFlexConv
from mmcontext.layers.pyconv import PyConv2d
from mmcontext.layers.replace_convs import replace_convs
from mmcontext.layers.split_attention import SplitAttention2d

SplitAttentionConv2d = SplitAttention2d  # its name in version 0.1

__all__ = [
    'CKConv1d', 'CKConv2d', 'CKConv3d', 'CVolution2d', 'CoConv2d', 'CoT2d', 'FlexConv1d',
    'FlexConv2d', 'FlexConv3d', 'FourierNet', 'GaborNet', 'Involution2d', 'KernelMLP', 'MAGNet',
    'PointCKConv', 'PointFlexConv', 'PyConv2d', 'RandomFeatureNet', 'RandomFourierNet', 'SIREN',
    'SeparableCKConv1d', 'SeparableCKConv2d', 'SeparableCKConv3d', 'SeparableFlexConv1d',
    'SeparableFlexConv2d', 'SeparableFlexConv3d', 'SplitAttention2d', 'SplitAttentionConv2d',
    'freeze_kernels', 'replace_convs', 'set_resolution'
]
