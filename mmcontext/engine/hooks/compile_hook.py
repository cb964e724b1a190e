"""Parts of a model compiled by torch.compile, under names and hooks that stay as they are."""
from typing import Sequence

from mmengine.hooks import Hook
from torch import nn

from mmcontext.registry import HOOKS
from mmcontext.utils.dist import unwrapped_model


@HOOKS.register_module()
class CompileHook(Hook):
    """Compiles the backbone, or other parts of a model, before a run.

    mmengine's own ``compile`` option takes the whole training step, in which a detector's
    assignment and sampling break the graph many times. A backbone is one graph; the rest of the
    step stays eager. Keys of checkpoints do not change.

    Args:
        parts (Sequence[str]): Names of modules in the model. Defaults to ``('backbone', )``.
        **options: Of ``torch.compile``; ``mode='reduce-overhead'`` replays CUDA graphs, for
            images of one size.

    Raises:
        TypeError: ``parts`` is not a sequence of names.
        ValueError: The model has no such module.
        RuntimeError: This torch has no ``nn.Module.compile``.
    """

    priority = 'VERY_LOW'

    def __init__(self, parts: Sequence[str] = ('backbone', ), **options) -> None:
        if isinstance(parts, str) or not all(isinstance(part, str) for part in parts):
            raise TypeError(f'parts of CompileHook must be a sequence of names, got {parts!r}')
        self.parts = tuple(parts)
        self.options = options

    def before_run(self, runner) -> None:
        """Compile; the work itself is done in the first call."""
        model = unwrapped_model(runner)
        if not hasattr(nn.Module, 'compile'):
            raise RuntimeError('CompileHook needs torch 2.2 or newer')
        for part in self.parts:
            try:
                module = model.get_submodule(part)
            except AttributeError:
                raise ValueError(
                    f'parts of CompileHook: {type(model).__name__} has no module {part!r}; it '
                    f'has {", ".join(name for name, _ in model.named_children())}') from None
            module.compile(**self.options)
        runner.logger.info(f'torch.compile of {", ".join(self.parts)}: the first iterations, and '
                           'the first with another image size, take long.')
