"""Base of the backbones whose first stages can be frozen."""
from typing import List, Sequence

from mmengine.model import BaseModule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class FreezableBackbone(BaseModule):
    """A backbone with frozen stages and norms in eval mode.

    A subclass sets the attributes, and calls :meth:`_freeze_stages` once it has its modules.

    Attributes:
        frozen_stages (int): The stem and that many stages are frozen (parameters and
            statistics); 0 is only the stem, -1 nothing.
        norm_eval (bool): Whether norms stay in eval mode in training.
    """

    frozen_stages: int
    norm_eval: bool

    def _stages(self) -> List[Sequence[nn.Module]]:
        """The modules of the stem, and those of every stage."""
        raise NotImplementedError

    def _freeze_stages(self) -> None:
        for modules in self._stages()[:self.frozen_stages + 1]:
            for module in modules:
                module.eval()
                module.requires_grad_(False)

    def train(self, mode: bool = True) -> 'FreezableBackbone':
        """Set the mode; frozen stages, and with ``norm_eval`` all norms, stay in eval."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self
