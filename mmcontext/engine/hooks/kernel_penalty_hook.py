"""L2 penalty on sampled kernels, instead of the optimiser's weight decay."""
from typing import List

import torch
from mmengine.hooks import Hook
from torch import Tensor, nn

from mmcontext.layers.continuous_kernel import ContinuousKernel
from mmcontext.layers.pointconv import PointCKConv
from mmcontext.registry import HOOKS
from mmcontext.utils.dist import unwrapped_model


def kernel_penalty(model: nn.Module, kernels: List[Tensor]) -> Tensor:
    """Sum of L2 norms (not squared) of parameters and sampled kernels.

    Args:
        model (nn.Module): Its trainable parameters outside kernel networks are included.
        kernels (list[Tensor]): Sampled kernels, included instead of the networks.

    Returns:
        Tensor: The sum, at least float32.
    """
    networks = [module.net if isinstance(module, ContinuousKernel) else module.kernel_net
                for module in model.modules()
                if isinstance(module, (ContinuousKernel, PointCKConv))]
    inside = {id(parameter) for network in networks for parameter in network.parameters()}
    tensors = [p for p in model.parameters() if p.requires_grad and id(p) not in inside]
    norms = [torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32))
             for t in tensors + kernels]
    return torch.stack(norms).sum()


@HOOKS.register_module()
class KernelPenaltyHook(Hook):
    """Adds ``weight`` * :func:`kernel_penalty` to the losses, as ``loss_kernel_penalty``.

    The penalty with which the CCNN is trained (arXiv 2206.03398); the optimiser's
    ``weight_decay`` should then be 0. It works for any mm model: it is computed inside the model's
    forward, so it takes part in mixed precision, gradient accumulation and distributed training
    like every other loss.

    Args:
        weight (float): Weight of the penalty; published values are 1e-6 to 1e-4.
    """

    priority = 'NORMAL'

    def __init__(self, weight: float) -> None:
        if not weight >= 0:
            raise ValueError(f'weight must not be negative, got {weight!r}')
        self.weight = weight
        self._handles: list = []
        self._sources: List[ContinuousKernel] = []
        self._kernels: List[Tensor] = []

    def before_train(self, runner) -> None:
        """Attach to the model and its continuous kernels."""
        model = unwrapped_model(runner)
        self.watch(model)

    def after_train(self, runner) -> None:
        """Detach from them."""
        self.release()

    def watch(self, model: nn.Module) -> None:
        """Attach to a model without a runner."""
        self.release()
        if not self.weight:
            return
        self._sources = [m for m in model.modules() if isinstance(m, ContinuousKernel)]
        self._handles = [source.register_forward_hook(self._collect) for source in self._sources]
        self._handles.append(model.register_forward_pre_hook(self._start))
        self._handles.append(model.register_forward_hook(self._add))

    def release(self) -> None:
        """Detach from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._sources, self._kernels = [], [], []

    def _start(self, model: nn.Module, args: tuple) -> None:
        self._kernels = []

    def _collect(self, source: nn.Module, args: tuple, kernel: Tensor) -> None:
        self._kernels.append(kernel)

    def _add(self, model: nn.Module, args: tuple, losses):
        if not (model.training and isinstance(losses, dict)):
            return None
        kernels, self._kernels = self._kernels, []
        if len(kernels) != len(self._sources) or not all(k.requires_grad for k in kernels):
            # Recomputed blocks run without gradients at first, frozen layers keep their kernel,
            # and shared layers run twice.
            kernels = [source.sample() for source in self._sources]
        with torch.autocast(kernels[0].device.type if kernels else 'cpu', enabled=False):
            penalty = self.weight * kernel_penalty(model, kernels)
        return {**losses, 'loss_kernel_penalty': penalty}
