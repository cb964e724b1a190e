"""Backbone, mean pooling and a linear layer as one plain PyTorch module."""
import functools
import math
from typing import Any, Dict, List, Optional, Sequence, Union

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmcontext.models.backbones import CCNN
from mmcontext.models.backbones.context_resnet import ContextResNet
from mmcontext.utils.initialise import initialise
from mmcontext.zoo.index import Entry, get_config, read_settings

_IMAGENET_MEAN = (123.675, 116.28, 103.53)
_IMAGENET_STD = (58.395, 57.12, 57.375)


class FeatureInfo(tuple):
    """Levels of features, with timm's methods.

    A level is a dict with ``num_chs``, its channels, ``reduction``, its stride in pixels of the
    image, and ``module``, the part of the backbone from which it comes.
    """

    def get_dicts(self) -> List[Dict[str, Any]]:
        """The dicts of all levels."""
        return [dict(level) for level in self]

    def channels(self) -> List[int]:
        """Channels of every level."""
        return [level['num_chs'] for level in self]

    def reduction(self) -> List[int]:
        """Stride of every level."""
        return [level['reduction'] for level in self]

    def module_name(self) -> List[str]:
        """Module of the backbone from which each level comes."""
        return [level['module'] for level in self]


def _side(size: Union[int, Sequence[int], None]) -> Optional[int]:
    return size[0] if isinstance(size, Sequence) else size


def default_cfg(entry: Entry, settings: Config) -> dict:
    """The properties of a network's images.

    Args:
        entry: Network of the zoo.
        settings: ``data_preprocessor`` and ``test_pipeline`` of its config; settings missing
            there are those of mmpretrain's files for ImageNet.

    Returns:
        timm's ``default_cfg``: architecture, num_classes, input_size (channels, height, width),
        mean and std (for values from 0 to 1), crop_pct, interpolation and classifier. Sequences
        have no size.
    """
    backbone, head = settings.model.backbone, settings.model.head
    preprocessor = settings.get('data_preprocessor', {})
    imagenet = 'data_preprocessor' not in settings
    mean = preprocessor.get('mean', _IMAGENET_MEAN if imagenet else None)
    std = preprocessor.get('std', _IMAGENET_STD if imagenet else None)
    size = entry.metadata.get('Input Size')
    crop, interpolation = entry.metadata.get('Crop Ratio', 0.875), 'bilinear'
    if settings.model.neck.get('dim', 2) == 2:
        resized = None
        for step in settings.get('test_pipeline') or ():
            if 'scale' in step:
                size = resized = _side(step['scale'])
            size = _side(step.get('crop_size', size))
            interpolation = step.get('interpolation', interpolation)
        if 'test_pipeline' in settings:
            crop = size / resized if resized else 1.
            size = size or 32  # CIFAR, whose images are not resized
    channels = backbone.get('in_channels', 3)
    return dict(
        architecture=entry.name, num_classes=head.get('num_classes', 1),
        input_size=(channels, ) + ((size, size) if size else ()), crop_pct=round(crop, 3),
        mean=mean and tuple(round(value / 255, 6) for value in mean),
        std=std and tuple(round(value / 255, 6) for value in std),
        interpolation=interpolation, classifier='head.fc')


def first_convolution(backbone: nn.Module) -> Optional[str]:
    """Name of the first convolution; None if it is a continuous one."""
    if isinstance(backbone, CCNN):
        return None
    return next(name for name, module in backbone.named_modules()
                if isinstance(module, nn.Conv2d))


class _Head(nn.Module):
    """Dropout and a linear layer; its keys are those of mmpretrain's ``LinearClsHead``."""

    def __init__(self, in_features: int, num_classes: int, drop_rate: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(drop_rate)
        self.fc = nn.Linear(in_features, num_classes) if num_classes else nn.Identity()
        if num_classes:
            nn.init.normal_(self.fc.weight, std=0.01)
            nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(x))


_POOLS = {
    'avg': lambda x: x.flatten(2).mean(-1),
    'max': lambda x: x.flatten(2).amax(-1),
    '': lambda x: x,
}


def _check_head(num_classes: int, global_pool: str) -> None:
    if not isinstance(num_classes, int) or num_classes < 0:
        raise ValueError(f'num_classes must be a number of classes or 0, got {num_classes!r}')
    if global_pool not in _POOLS:
        raise ValueError(f"global_pool must be 'avg', 'max' or '', got {global_pool!r}")
    if num_classes and not global_pool:
        raise ValueError(f"global_pool='' leaves no vector for a linear layer: it needs "
                         f'num_classes=0, got {num_classes}')


def feature_info(backbone: nn.Module) -> FeatureInfo:
    """Channels and strides of the levels returned by a backbone."""
    if isinstance(backbone, CCNN):
        stride = backbone.pool.kernel_size**len(backbone.pools)
        return FeatureInfo([dict(num_chs=backbone.out_channels, reduction=stride,
                                 module='blocks')])
    if isinstance(backbone, ContextResNet):
        strides = backbone.feature_strides
        channels = backbone.feature_channels
    else:  # a ResNet of an mm library, which has the same names
        strides = [4 * math.prod(backbone.strides[:i + 1]) for i in range(4)]
        channels = [backbone.feat_dim // 2**(3 - i) for i in range(4)]
    return FeatureInfo(dict(num_chs=channels[i], reduction=strides[i], module=f'layer{i + 1}')
                       for i in sorted(backbone.out_indices))


def _build_backbone(entry: Entry, cfg: dict, options: dict) -> nn.Module:
    """The backbone of a config, initialised."""
    cfg = {**cfg, **options}
    channels = cfg.get('in_channels', 3)
    if not isinstance(channels, int) or channels < 1:
        raise ValueError(f'in_channels must be a positive number of channels, got {channels!r}')
    scope = {'detection': 'mmdet', 'segmentation': 'mmseg'}.get(entry.task, 'mmengine')
    if entry.task == 'classification' and '.' not in cfg['type']:
        scope = 'mmpretrain'  # the plain ResNet to compare with
    with DefaultScope.overwrite_default_scope(scope):
        try:
            backbone = MODELS.build(cfg)
        except TypeError as error:
            if not options:
                raise
            raise ValueError(f'{entry.name}: {error}; the options of its backbone are those of '
                             f'{cfg["type"]}') from error
    return initialise(backbone)


class _ZooNetwork(nn.Module):
    """Base of classifiers and feature extractors: a backbone."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether blocks are recomputed in backward, which saves memory."""
        for module in self.backbone.modules():
            if hasattr(module, 'with_cp'):
                module.with_cp = enable


class ZooClassifier(_ZooNetwork):
    """A classifier of the zoo without mmpretrain, with timm's attributes and methods.

    The entries of its state dict have the same names as in mmpretrain (``backbone.*``,
    ``head.fc.*``), so that checkpoints work for both.

    Args:
        entry: Network of the zoo.
        num_classes: Classes; None for those of the config, 0 for no linear layer.
        in_channels: Channels of the input; None for those of the config.
        global_pool: Pooling of the last feature map: 'avg' (default), 'max', or '' for none,
            which needs ``num_classes=0``.
        drop_rate: Dropout before the linear layer; None for the config's.
        **backbone_options: Arguments of the backbone that override the config's.

    Attributes:
        num_classes, num_features: Outputs and inputs of the linear layer.
        global_pool (str): As given.
        default_cfg (dict): See :func:`default_cfg`, and ``first_conv``, the name of the first
            convolution. ``pretrained_cfg`` is the same.

    Shape: [B, in_channels, *size] -> [B, num_classes].
    """

    def __init__(self, entry: Entry, num_classes: Optional[int] = None,
                 in_channels: Optional[int] = None, global_pool: str = 'avg',
                 drop_rate: Optional[float] = None, **backbone_options) -> None:
        super().__init__()
        settings = read_settings(entry.config, 'model', 'data_preprocessor', 'test_pipeline')
        self.default_cfg = self.pretrained_cfg = default_cfg(entry, settings)
        if in_channels is not None:
            backbone_options['in_channels'] = in_channels
        self.backbone = _build_backbone(entry, settings.model.backbone.to_dict(),
                                        backbone_options)
        first = first_convolution(self.backbone)
        self.default_cfg['first_conv'] = first and f'backbone.{first}'
        self.num_features = feature_info(self.backbone).channels()[-1]
        self.num_classes = self.default_cfg['num_classes'] if num_classes is None else num_classes
        self.global_pool = global_pool
        _check_head(self.num_classes, global_pool)
        self._drop_rate = settings.model.head.get('dropout', 0.) if drop_rate is None else drop_rate
        self.head = _Head(self.num_features, self.num_classes, self._drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, [B, num_features, *size]."""
        return self.backbone(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits [B, num_classes] of a feature map; with ``pre_logits`` only its pooling."""
        x = _POOLS[self.global_pool](x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Set a new linear layer for that many classes, 0 for none, and ``global_pool``."""
        global_pool = self.global_pool if global_pool is None else global_pool
        _check_head(num_classes, global_pool)
        reference = next(self.parameters())
        self.num_classes, self.global_pool = num_classes, global_pool
        self.head = _Head(self.num_features, num_classes, self._drop_rate).to(
            reference.device, reference.dtype)


def _stages(out_indices: Union[int, Sequence[int], None], num_stages: int) -> Sequence[int]:
    """Stages counted from 0; negative ones count from the last."""
    if out_indices is None:
        return tuple(range(num_stages))
    if isinstance(out_indices, int):
        out_indices = (out_indices, )
    if not all(isinstance(index, int) and -num_stages <= index < num_stages
               for index in out_indices):
        raise ValueError(f'out_indices must be stages 0 to {num_stages - 1}, or -1 to '
                         f'-{num_stages} from the last, got {out_indices!r}')
    return tuple(index % num_stages for index in out_indices)


class ZooFeatures(_ZooNetwork):
    """The backbone of a network of the zoo, returning a list of feature maps.

    Args:
        entry: Network of the zoo, of any task.
        in_channels: Channels of the input; None for those of the config.
        out_indices: Stages, 0 to 3, or -1 for the last; None for all of them.
        **backbone_options: Arguments of the backbone that override the config's.

    Attributes:
        feature_info (FeatureInfo): Channels and strides of the levels.

    Shape: [B, in_channels, H, W] -> list of [B, C_i, H_i, W_i].
    """

    def __init__(self, entry: Entry, in_channels: Optional[int] = None,
                 out_indices: Union[int, Sequence[int], None] = None,
                 **backbone_options) -> None:
        super().__init__()
        # A detector's backbone may be defined in the library's own files.
        settings = read_settings(entry.config, 'model') if entry.task == 'classification' else \
            get_config(entry.name)
        cfg = settings.model.backbone.to_dict()
        if in_channels is not None:
            backbone_options['in_channels'] = in_channels
        if cfg['type'] != 'mmcontext.CCNN':
            num_stages = {**cfg, **backbone_options}.get('num_stages', 4)
            backbone_options['out_indices'] = _stages(out_indices, num_stages)
        elif out_indices is not None:
            raise ValueError(f'{entry.name} has one level of features, at full resolution: leave '
                             f'out out_indices, got {out_indices!r}')
        # The weights from which the training of a detector starts are not loaded.
        self.backbone = _build_backbone(entry, {**cfg, 'init_cfg': None}, backbone_options)

    @functools.cached_property
    def feature_info(self) -> FeatureInfo:
        return feature_info(self.backbone)

    def forward(self, x: Tensor) -> List[Tensor]:
        return list(self.backbone(x))
