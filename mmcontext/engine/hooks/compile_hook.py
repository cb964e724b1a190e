"""Parts of a model compiled by torch.compile, without changing names or hooks."""
from typing import Sequence

import torch

from mmcontext.registry import HOOKS

from .parts_hook import PartsHook


@HOOKS.register_module()
class CompileHook(PartsHook):
    """Compiles the backbone, or other parts of a model, before a run.

    mmengine's own ``compile`` option compiles the whole training step, in which a detector's
    assignment and sampling break the graph many times. A backbone is one graph; the rest of the
    step stays eager. The keys of checkpoints do not change.

    Args:
        parts (Sequence[str]): Names of modules in the model. Defaults to ``('backbone', )``.
        **options: Options of ``torch.compile``; ``mode='reduce-overhead'`` replays CUDA graphs,
            for images of a fixed size.

    Raises:
        TypeError: ``parts`` is not a sequence of names.
        ValueError: The model has no such module.
        RuntimeError: torch is older than 2.5, whose ``torch.compile`` fails at the layers.
    """

    def __init__(self, parts: Sequence[str] = ('backbone', ), **options) -> None:
        super().__init__(parts)
        self.options = options

    def before_run(self, runner) -> None:
        """Mark the modules for compilation, which happens in the first call."""
        if torch.__version__ < (2, 5):
            raise RuntimeError(f'CompileHook needs torch 2.5 or newer, this is {torch.__version__}')
        for module in self.modules(runner):
            module.compile(**self.options)
        runner.logger.info(f'torch.compile of {", ".join(self.parts)}: the first iterations, and '
                           'the first with another image size, take long.')
