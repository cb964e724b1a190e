"""Training parts of a model as CUDA graphs: one launch instead of one per kernel."""
from typing import Callable, Dict, Sequence, Tuple

import torch
from torch import Tensor, nn

from mmcontext.layers.continuous_kernel import ContinuousKernel
from mmcontext.layers.flexconv import refresh_windows
from mmcontext.registry import HOOKS

from .parts_hook import PartsHook


class _Callable(nn.Module):
    """A module's forward wrapped in a separate module, for torch to patch."""

    def __init__(self, module: nn.Module, forward: Callable) -> None:
        super().__init__()
        self.module = module
        self._forward = forward
        self._outputs: Sequence[Tensor] = ()

    def forward(self, x: Tensor):
        self.release()
        outputs = self._forward(x)
        self._outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
        return outputs

    def release(self) -> None:
        """Free the autograd graph of the last call.

        torch keeps the outputs of the last warm-up until after the capture, and those of the
        capture for good. Their autograd graph would keep the nodes that accumulate gradients on
        the stream that it was made on, and later backward passes would have to wait for that
        stream, parameter by parameter.
        """
        for output in self._outputs:
            if not output._is_view():
                output.detach_()
        self._outputs = ()


def capture(module: nn.Module, forward: Callable, x: Tensor, warmup: int) -> Callable:
    """Capture the forward and backward pass of a module for inputs like ``x`` as two CUDA graphs.

    Buffers (running statistics) and random states are restored afterwards.

    Args:
        module: The module, whose parameters get gradients.
        forward: Its forward function.
        x: An input.
        warmup: Passes before the capture, during which kernels are chosen and compiled.
    """
    kept = {name: buffer.clone() for name, buffer in module.named_buffers()}
    random_state = torch.cuda.get_rng_state(x.device)
    enabled = torch.is_autocast_enabled()
    called = _Callable(module, forward)
    # The casts of weights must be in the graph: autocast's cache is cleared after every step.
    with torch.autocast('cuda', torch.get_autocast_gpu_dtype(), enabled, cache_enabled=False):
        graphed = torch.cuda.make_graphed_callables(
            called, (x.detach().clone(), ), num_warmup_iters=warmup, allow_unused_input=True)
    called.release()
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            buffer.copy_(kept[name])
    torch.cuda.set_rng_state(random_state, x.device)
    return graphed


class GraphedForward:
    """Replaces a module's forward: graphs in training, the original otherwise.

    A graph fixes the sizes of kernels with learned sizes: when one of them changes, all graphs
    are captured anew.

    Args:
        module: The module.
        most: Maximum number of input sizes with a graph, the first to occur twice; others stay
            eager.
        warmup: As for :func:`capture`.
    """

    def __init__(self, module: nn.Module, most: int, warmup: int) -> None:
        self._module, self._forward = module, module.forward
        self._most, self._warmup = most, warmup
        self._seen: Dict[Tuple, int] = {}
        self._graphs: Dict[Tuple, Callable] = {}
        self._kernels = [m for m in module.modules() if isinstance(m, ContinuousKernel)]
        self._windows: Tuple = ()

    def _eligible(self, x: Tensor, others: tuple, named: dict) -> bool:
        return (not others and not named and type(x) is Tensor and x.is_cuda
                and self._module.training and torch.is_grad_enabled() and not x.requires_grad)

    def __call__(self, x: Tensor, *others, **named):
        if not self._eligible(x, others, named):
            return self._forward(x, *others, **named)
        windows = refresh_windows(self._kernels)
        if windows != self._windows:
            self._windows = windows
            self._graphs.clear()
            self._seen.clear()
        key = (x.shape, x.stride(), x.dtype, torch.is_autocast_enabled(),
               torch.get_autocast_gpu_dtype())
        graph = self._graphs.get(key)
        if graph is None:
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._seen[key] < 2 or len(self._graphs) >= self._most:
                return self._forward(x)
            graph = self._graphs[key] = capture(self._module, self._forward, x, self._warmup)
        return graph(x)


@HOOKS.register_module()
class CudaGraphHook(PartsHook):
    """Trains the backbone, or other parts of a model, with CUDA graphs.

    A graph needs fixed sizes: the first ``most_sizes`` image sizes get one each, all others run
    eagerly. Losses equal those of eager training; the output of a module is overwritten in the
    next iteration. Checkpoints do not change.

    Args:
        parts (Sequence[str]): Names of modules that take one tensor each. Defaults to
            ``('backbone', )``.
        most_sizes (int): Maximum number of image sizes with a graph. Defaults to 4.
        warmup (int): Passes before a capture. Defaults to 3.

    Raises:
        TypeError: ``parts`` is not a sequence of names.
        ValueError: The model has no such module, or gradients are accumulated, which graphs would
            overwrite.
    """

    def __init__(self, parts: Sequence[str] = ('backbone', ), most_sizes: int = 4,
                 warmup: int = 3) -> None:
        super().__init__(parts)
        self.most_sizes, self.warmup = most_sizes, warmup

    def before_train(self, runner) -> None:
        """Replace the modules' forward by graphs."""
        counts = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if counts != 1:
            raise ValueError(f'CudaGraphHook does not accumulate gradients, and the optim_wrapper '
                             f'has accumulative_counts={counts}')
        for module in self.modules(runner):
            module.forward = GraphedForward(module, self.most_sizes, self.warmup)

    def after_train(self, runner) -> None:
        """Restore the modules' forward."""
        for module in self.modules(runner):
            module.__dict__.pop('forward', None)
