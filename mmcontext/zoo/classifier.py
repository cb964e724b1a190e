"""Backbone, mean pooling and a linear layer as one plain PyTorch module."""
import functools
import math
from typing import List, NamedTuple, Optional, Sequence, Union

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmcontext.models.backbones import CCNN
from mmcontext.models.backbones.context_resnet import ContextResNet
from mmcontext.utils.initialise import initialise
from mmcontext.zoo.index import Entry, get_config, read_settings

_IMAGENET_MEAN = (123.675, 116.28, 103.53)
_IMAGENET_STD = (58.395, 57.12, 57.375)


class FeatureLevel(NamedTuple):
    """A level of features: its number of channels, and its stride in pixels of the image."""
    num_chs: int
    reduction: int
    module: str


class FeatureInfo(tuple):
    """Levels of features, with the methods that users of timm know."""

    def channels(self) -> List[int]:
        """Channels of every level."""
        return [level.num_chs for level in self]

    def reduction(self) -> List[int]:
        """Stride of every level."""
        return [level.reduction for level in self]

    def module_name(self) -> List[str]:
        """Module of the backbone that every level comes from."""
        return [level.module for level in self]


def _side(size: Union[int, Sequence[int], None]) -> Optional[int]:
    return size[0] if isinstance(size, Sequence) else size


def default_cfg(entry: Entry, settings: Config) -> dict:
    """What the images of a network look like.

    Args:
        entry: Network of the zoo.
        settings: ``data_preprocessor`` and ``test_pipeline`` of its config; what is missing
            there stands in mmpretrain's files for ImageNet.

    Returns:
        timm's ``default_cfg``: architecture, num_classes, input_size (channels, height, width),
        mean and std (of values from 0 to 1), crop_pct, interpolation, classifier, and
        ``first_conv`` where it can be adapted to other channels. Sequences have no size.
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
            size = size or 32  # CIFAR, whose images come as they are
    channels = backbone.get('in_channels', 3)
    return dict(
        architecture=entry.name, num_classes=head.get('num_classes', 1),
        input_size=(channels, ) + ((size, size) if size else ()), crop_pct=round(crop, 3),
        mean=mean and tuple(round(value / 255, 6) for value in mean),
        std=std and tuple(round(value / 255, 6) for value in std),
        interpolation=interpolation, classifier='head.fc',
        first_conv='backbone.stem.0.conv' if 'depth' in backbone else None)


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


def _check_classes(num_classes: int) -> None:
    if not isinstance(num_classes, int) or num_classes < 0:
        raise ValueError(f'num_classes must be a number of classes or 0, got {num_classes!r}')


def feature_info(backbone: nn.Module) -> FeatureInfo:
    """Channels and strides of the levels that a backbone returns."""
    if isinstance(backbone, CCNN):
        stride = backbone.pool.kernel_size**len(backbone.pools)
        return FeatureInfo([FeatureLevel(backbone.out_channels, stride, 'blocks')])
    if isinstance(backbone, ContextResNet):
        strides = backbone.feature_strides
        channels = backbone.feature_channels
    else:  # a ResNet of an mm library, which has the same names
        strides = [4 * math.prod(backbone.strides[:i + 1]) for i in range(4)]
        channels = [backbone.feat_dim // 2**(3 - i) for i in range(4)]
    return FeatureInfo(FeatureLevel(channels[i], strides[i], f'layer{i + 1}')
                       for i in backbone.out_indices)


def _build_backbone(entry: Entry, cfg: dict, options: dict) -> nn.Module:
    """The backbone of a config, initialised."""
    cfg = {**cfg, **options}
    scope = {'detection': 'mmdet', 'segmentation': 'mmseg'}.get(entry.task, 'mmengine')
    if entry.task == 'classification' and '.' not in cfg['type']:
        scope = 'mmpretrain'  # the plain ResNet to compare with
    with DefaultScope.overwrite_default_scope(scope):
        try:
            backbone = MODELS.build(cfg)
        except TypeError as error:
            if 'unexpected keyword argument' not in str(error):
                raise
            raise ValueError(f'{entry.name}: {error}; the options of its backbone are those of '
                             f'{cfg["type"]}') from error
    return initialise(backbone)


class ZooClassifier(nn.Module):
    """A classifier of the zoo without mmpretrain, with timm's attributes and methods.

    The entries of its state dict have the names that the same network has in mmpretrain
    (``backbone.*``, ``head.fc.*``), so that checkpoints serve both.

    Args:
        entry: Network of the zoo.
        num_classes: Classes; None for those of the config, 0 for no linear layer.
        in_channels: Channels of the input; None for those of the config.
        **backbone_options: Arguments of the backbone in place of the config's.

    Attributes:
        num_classes, num_features: Outputs and inputs of the linear layer.
        default_cfg (dict): See :func:`default_cfg`; ``pretrained_cfg`` is the same.

    Shape: [B, in_channels, *size] -> [B, num_classes].
    """

    def __init__(self, entry: Entry, num_classes: Optional[int] = None,
                 in_channels: Optional[int] = None, **backbone_options) -> None:
        super().__init__()
        settings = read_settings(entry.config, 'model', 'data_preprocessor', 'test_pipeline')
        self.default_cfg = self.pretrained_cfg = default_cfg(entry, settings)
        if in_channels is not None:
            backbone_options['in_channels'] = in_channels
        self.backbone = _build_backbone(entry, settings.model.backbone.to_dict(),
                                        backbone_options)
        self.num_features = feature_info(self.backbone)[-1].num_chs
        self.num_classes = self.default_cfg['num_classes'] if num_classes is None else num_classes
        _check_classes(self.num_classes)
        self._drop_rate = settings.model.head.get('dropout', 0.)
        self.head = _Head(self.num_features, self.num_classes, self._drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, [B, num_features, *size]."""
        return self.backbone(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits [B, num_classes] of a feature map; with ``pre_logits`` its mean alone."""
        x = x.flatten(2).mean(-1)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int) -> None:
        """A new linear layer for that many classes; 0 for none."""
        _check_classes(num_classes)
        reference = next(self.parameters())
        self.num_classes = num_classes
        self.head = _Head(self.num_features, num_classes, self._drop_rate).to(
            reference.device, reference.dtype)


class ZooFeatures(nn.Module):
    """The backbone of a network of the zoo, which returns a list of feature maps.

    Args:
        entry: Network of the zoo, of any task.
        in_channels: Channels of the input; None for those of the config.
        out_indices: Stages, 0 to 3; None for all of them.
        **backbone_options: Arguments of the backbone in place of the config's.

    Attributes:
        feature_info (FeatureInfo): Channels and strides of the levels.

    Shape: [B, in_channels, H, W] -> list of [B, C_i, H_i, W_i].
    """

    def __init__(self, entry: Entry, in_channels: Optional[int] = None,
                 out_indices: Optional[Sequence[int]] = None, **backbone_options) -> None:
        super().__init__()
        # What a detector's backbone is may stand in the library's own files.
        settings = read_settings(entry.config, 'model') if entry.task == 'classification' else \
            get_config(entry.name)
        cfg = settings.model.backbone.to_dict()
        if in_channels is not None:
            backbone_options['in_channels'] = in_channels
        if cfg['type'] != 'mmcontext.CCNN':
            backbone_options['out_indices'] = (0, 1, 2, 3) if out_indices is None else out_indices
        elif out_indices is not None:
            raise ValueError(f'{entry.name} has one level of features, at full resolution: leave '
                             f'out out_indices, got {out_indices!r}')
        # The weights that the training of a detector starts from are not fetched.
        self.backbone = _build_backbone(entry, {**cfg, 'init_cfg': None}, backbone_options)

    @functools.cached_property
    def feature_info(self) -> FeatureInfo:
        return feature_info(self.backbone)

    def forward(self, x: Tensor) -> List[Tensor]:
        return list(self.backbone(x))
