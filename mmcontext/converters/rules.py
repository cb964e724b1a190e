"""Renaming of state-dict keys, one list of rules per published code base.

A rule is a regular expression that matches a whole key, and the template of its new name
(``re.Match.expand``). Rules are applied to keys without ``module.`` and ``backbone.`` prefixes
and with the classifier under ``fc``.
"""
import re
from typing import Callable, List, Optional, Pattern, Tuple

Rule = Tuple[Pattern, Callable[[re.Match], Optional[str]]]

_BLOCK = r'(layer[1-4]\.\d+)'
LEAF = r'((?:weight|bias|running_mean|running_var|num_batches_tracked))'


def rule(pattern: str, template: str) -> Rule:
    """Rule from a pattern for the whole key and a template."""
    return re.compile(pattern), lambda match: match.expand(template)


def drop(pattern: str) -> Rule:
    """Rule for entries without learned state that have no counterpart."""
    return re.compile(pattern), lambda match: None


def _block(source: str, target: str) -> Rule:
    return rule(rf'{_BLOCK}\.{source}\.{LEAF}', rf'backbone.\1.{target}.\2')


def _stem(source: str, target: str) -> Rule:
    return rule(rf'{source}\.{LEAF}', rf'backbone.stem.{target}.\1')


def _pyramid(source: str, target: str) -> List[Rule]:
    """The levels of a CoConv or PyConv: ``source_1``.. or, for a single level, ``source``."""

    def rename(match: re.Match) -> str:
        return f'backbone.{match[1]}.{target}.convs.{int(match[2]) - 1}.weight'

    return [(re.compile(rf'{_BLOCK}\.{source}\.conv2_(\d+)\.weight'), rename),
            rule(rf'{_BLOCK}\.{source}\.weight', rf'backbone.\1.{target}.convs.0.weight')]


_FC = rule(r'fc\.(weight|bias)', r'head.fc.\1')
_SHORTCUT = rule(rf'{_BLOCK}\.downsample\.(\d)\.{LEAF}', r'backbone.\1.shortcut.\2.\3')
_PLAIN_STEM = [_stem('conv1', '0.conv'), _stem('bn1', '0.bn')]
_REDUCE = [_block('conv1', 'reduce.0'), _block('bn1', 'reduce.1')]
_NORM2 = _block('bn2', 'norm2.0')
_EXPAND = [_block('conv3', 'expand'), _block('bn3', 'norm3')]
_BOTTLENECK = [*_REDUCE, *_EXPAND, _SHORTCUT, _FC]

PYRAMID_BOTTLENECK = [
    *_PLAIN_STEM, *_BOTTLENECK, _NORM2, *_pyramid('conv2', 'spatial')
]

PYRAMID_BASIC = [
    *_PLAIN_STEM, _SHORTCUT, _FC,
    *_pyramid('conv1', 'spatial'),
    _block('bn1', 'norm2.0'),
    _block('conv2', 'expand'),
    _block('bn2', 'norm3'),
]

_COT_LAYER = [
    _block(rf'conv2\.{source}', f'spatial.{target}') for source, target in (
        (r'key_embed\.0', 'key.0'), (r'key_embed\.1', 'key.1'), (r'embed\.0', 'embed.0'),
        (r'embed\.1', 'embed.1'), (r'embed\.3', 'span'), (r'embed\.4', 'span_norm'),
        (r'conv1x1\.0', 'value.0'), (r'conv1x1\.1', 'value.1'), ('bn', 'norm'),
        (r'se\.0', 'attend.0.0'), (r'se\.1', 'attend.0.1'), (r'se\.3', 'attend.1'))
]

_SPLIT_ATTENTION_LAYER = [
    _block(rf'conv2\.{source}', f'spatial.{target}') for source, target in (
        ('conv', 'conv.0'), ('bn0', 'conv.1'), ('fc1', 'gate.0.0'), ('bn1', 'gate.0.1'),
        ('fc2', 'gate.1'))
]

COTNET = [*_PLAIN_STEM, *_BOTTLENECK, *_COT_LAYER]

SE_COTNETD = [
    _stem(r'conv1\.0', '0.conv'), _stem(r'conv1\.1', '0.bn'), _stem(r'conv1\.3', '1.conv'),
    _stem(r'conv1\.4', '1.bn'), _stem(r'conv1\.6', '2.conv'), _stem('bn1', '2.bn'),
    *_BOTTLENECK, *_COT_LAYER, *_SPLIT_ATTENTION_LAYER,
    # The blur pool's fixed filter, which is stored by some versions of the code.
    drop(rf'{_BLOCK}\.(?:aa|avd|avd_last)\.filt'),
]

INVOLUTION_PARTS = ((r'conv1\.conv', 'reduce.0'), (r'conv1\.bn', 'reduce.1'),
                    (r'conv2\.conv', 'span'))
CVOLUTION_PARTS = ((r'conv1\.0', 'reduce.0'), (r'conv1\.1', 'reduce.1'), (r'conv2\.0', 'span'),
                   ('conv_q', 'gate'))


def _dynamic(parts) -> List[Rule]:
    return [
        _stem(r'stem\.0\.conv', '0.conv'), _stem(r'stem\.0\.bn', '0.bn'),
        _stem(r'stem\.2', '2'), _stem(r'stem\.4\.conv', '4.conv'),
        _stem(r'stem\.4\.bn', '4.bn'), *_BOTTLENECK, _NORM2,
        *(_stem(rf'stem\.1\.{source}', f'1.{target}') for source, target in parts),
        *(_block(rf'conv2\.{source}', f'spatial.{target}') for source, target in parts)
    ]


REDNET = _dynamic(INVOLUTION_PARTS)
CEDNET = _dynamic(CVOLUTION_PARTS)


def _resnet_stem(source: str, target: str) -> Rule:
    """The stem of a segmentation network, stored as layer0 or as in the backbone."""
    return rule(rf'(?:{source})\.{LEAF}', rf'backbone.{target}.\1')


def _branch(source: str, first: int, target: str) -> List[Rule]:
    """1x1, norm, ReLU, pyramid, norm, ReLU, 1x1, norm of PyConvSegNet's head."""
    source, target = rf'pyconvhead\.{source}', f'decode_head.{target}'

    def rename(match: re.Match) -> str:
        return f'{target}.1.conv.convs.{int(match[1]) - 1}.weight'

    return [
        (re.compile(rf'{source}\.{first + 3}\.conv2_(\d+)\.weight'), rename),
        *(rule(rf'{source}\.{first + offset}\.{LEAF}', rf'{target}.{part}.\1')
          for offset, part in ((0, '0.conv'), (1, '0.bn'), (4, '1.bn'), (6, '2.conv'),
                               (7, '2.bn'))),
    ]


_SEGMENTATION_HEADS = [
    *_branch(r'local_context\.layers', 0, 'local_context'),
    *_branch(r'global_context\.features', 1, 'global_context'),
    *(rule(rf'{source}\.{LEAF}', rf'{target}.\1') for source, target in (
        (r'pyconvhead\.merge_context\.features\.0', 'decode_head.merge.conv'),
        (r'pyconvhead\.merge_context\.features\.1', 'decode_head.merge.bn'),
        (r'cls\.1', 'decode_head.conv_seg'),
        (r'aux\.0', 'auxiliary_head.convs.0.conv'),
        (r'aux\.1', 'auxiliary_head.convs.0.bn'),
        (r'aux\.4', 'auxiliary_head.conv_seg'))),
    # The classifier of the ImageNet network, if the checkpoint still has it.
    drop(r'fc\.(?:weight|bias)'),
]

PYCONVSEGNET_RESNET = [
    *_SEGMENTATION_HEADS,
    _resnet_stem(r'layer0\.0|conv1', 'conv1'), _resnet_stem(r'layer0\.1|bn1', 'bn1'),
    rule(rf'{_BLOCK}\.((?:conv|bn)[1-3]|downsample\.[01])\.{LEAF}', r'backbone.\1.\2.\3'),
]

PYCONVSEGNET_PYCONVRESNET = [
    *_SEGMENTATION_HEADS, *PYRAMID_BOTTLENECK,
    _stem(r'layer0\.0', '0.conv'), _stem(r'layer0\.1', '0.bn'),
]
