from mmcontext.models.backbones.ccnn import CCNN
from mmcontext.models.backbones.ckresnet import CKResNet
from mmcontext.models.backbones.coresnet import CoResNet
from mmcontext.models.backbones.cotnet import CoTNet, CoTNeXt, SECoTNetD
from mmcontext.models.backbones.point_ccnn import PointCCNN
from mmcontext.models.backbones.pyconvresnet import PyConvHGResNet, PyConvResNet
from mmcontext.models.backbones.rednet import CedNet, RedNet

__all__ = [
    'CCNN', 'CKResNet', 'CedNet', 'CoResNet', 'CoTNeXt', 'CoTNet', 'PointCCNN',
    'PyConvHGResNet', 'PyConvResNet', 'RedNet', 'SECoTNetD'
]
