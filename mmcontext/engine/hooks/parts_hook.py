"""Base of hooks that act on some modules of a model."""
from typing import List, Sequence

from mmengine.hooks import Hook
from torch import nn

from mmcontext.utils.dist import unwrapped_model


class PartsHook(Hook):
    """Base of hooks that change how parts of a model run.

    Args:
        parts (Sequence[str]): Names of modules in the model.

    Raises:
        TypeError: ``parts`` is not a sequence of names.
    """

    priority = 'VERY_LOW'

    def __init__(self, parts: Sequence[str]) -> None:
        if isinstance(parts, str) or not all(isinstance(part, str) for part in parts):
            raise TypeError(f'parts of {type(self).__name__} must be a sequence of names, '
                            f'got {parts!r}')
        self.parts = tuple(parts)

    def modules(self, runner) -> List[nn.Module]:
        """The parts.

        Raises:
            ValueError: The model has no such module.
        """
        model = unwrapped_model(runner)
        try:
            return [model.get_submodule(part) for part in self.parts]
        except AttributeError as error:
            names = ', '.join(name for name, _ in model.named_children())
            raise ValueError(f'parts={self.parts!r} of {type(self).__name__}: '
                             f'{type(model).__name__} has {names} ({error})') from None
