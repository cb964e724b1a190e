"""mmseg's FCN head with torch's initialisation."""
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads import FCNHead
from torch import nn

from mmcontext.registry import MODELS


class TorchInit:
    """Mixin for decode heads whose plain convolutions keep torch's initialisation."""

    def init_weights(self) -> None:
        """Weights and biases uniform in +-1 / sqrt(fan_in); operators keep their own."""
        super().init_weights()
        convs = [m.conv for m in self.modules() if isinstance(m, ConvModule)] + [self.conv_seg]
        for conv in convs:
            if type(conv) is nn.Conv2d:
                conv.reset_parameters()


# The second name is that of version 0.1.
@MODELS.register_module(name=['TorchInitFCNHead', 'FCNHead'])
class TorchInitFCNHead(TorchInit, FCNHead):
    """mmseg's ``FCNHead`` (`FCN <https://arxiv.org/abs/1411.4038>`_) with torch's initialisation.

    PyConvSegNet's auxiliary head. Arguments, shapes and state-dict keys are those of ``FCNHead``;
    ``init_cfg`` does not affect the convolutions.
    """
