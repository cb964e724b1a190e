"""Functions shared by the figures."""
from typing import Any, Optional, Tuple

import numpy as np

from mmcontext.utils.errors import UserError


def new_figure(rows: int, columns: int, side: float = 2.2) -> Tuple[Any, np.ndarray]:
    """A figure with a grid of square axes without ticks.

    Returns:
        The figure, and axes [rows, columns].
    """
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(rows, columns, squeeze=False, layout='constrained',
                                   figsize=(side * columns, side * rows + 0.3))
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes


def show_map(axis, values: np.ndarray, title: str = '', signed: bool = False,
             image: Optional[np.ndarray] = None) -> None:
    """Draw a map of numbers, over an image if one is given.

    Args:
        axis: matplotlib axes.
        values: [H, W].
        title: Title above the map.
        signed: Whether the colour map is centred at zero.
        image: RGB [H', W', 3].
    """
    limit = float(np.abs(values).max()) or 1.
    options = dict(cmap='RdBu_r', vmin=-limit, vmax=limit) if signed else dict(cmap='viridis')
    if image is not None:
        height, width = image.shape[:2]
        axis.imshow(image)
        options.update(alpha=0.6, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    axis.imshow(values, interpolation='nearest', **options)
    axis.set_title(title, fontsize=7)


def save_figure(figure, path: str) -> None:
    """Write a figure and print its path.

    Raises:
        UserError: It cannot be written, or matplotlib does not know the file type.
    """
    from matplotlib import pyplot
    try:
        figure.savefig(path, dpi=110, bbox_inches='tight')
    except (OSError, ValueError) as error:
        raise UserError(f'cannot write --out {path}: {error}') from error
    finally:
        pyplot.close(figure)
    print(f'wrote {path}')
