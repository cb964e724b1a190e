"""RedNet and CedNet detectors of mmdet 2.

Neck, RPN and heads of mmdet 2 and 3 have the same names; only the operators in them differ:
the authors use a bare operator instead of the convolution module, and in the mask head a
``Sequential`` of operator and ReLU.
"""
from typing import Dict, List, Tuple

from mmcontext.converters import rules
from mmcontext.converters.rules import LEAF, Rule, rule

_OPERATOR_SITES = ((r'neck\.fpn_convs\.(\d+)', r'neck.fpn_convs.\1.conv'),
                   (r'rpn_head\.rpn_conv()', r'rpn_head.rpn_conv\1.conv'),
                   (r'roi_head\.mask_head\.convs\.(\d+)\.0', r'roi_head.mask_head.convs.\1.conv'))
_UNCHANGED = rule(r'((?:neck|rpn_head|roi_head|bbox_head)\..+)', r'\1')


def _detector(backbone: List[Rule], parts) -> List[Rule]:
    operators = [
        rule(rf'{site}\.{source}\.{LEAF}', rf'{target}.{renamed}.\2')
        for site, target in _OPERATOR_SITES for source, renamed in parts
    ]
    return [*operators, _UNCHANGED, *backbone]


_REDNET = _detector(rules.REDNET, rules.INVOLUTION_PARTS)
_CEDNET = _detector(rules.CEDNET, rules.CVOLUTION_PARTS)


def _entries(net: str, detectors: Dict[str, Tuple[str, ...]],
             keys: List[Rule]) -> Dict[str, Tuple[str, List[Rule]]]:
    return {
        f'{detector}_{net}50{variant}': (f'{net}/{detector}_{net}50{variant}_1x_coco.py', keys)
        for detector, variants in detectors.items() for variant in variants
    }


_RCNN = dict.fromkeys(('faster_rcnn', 'mask_rcnn'), ('_fpn', '_neck_fpn', '_neck_fpn_head'))

# arch -> (config, rules)
DETECTORS: Dict[str, Tuple[str, List[Rule]]] = {
    **_entries('rednet', {**_RCNN, 'retinanet': ('_fpn', '_neck_fpn')}, _REDNET),
    **_entries('cednet', _RCNN, _CEDNET),
}
