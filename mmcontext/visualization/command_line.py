"""The command line shared by the tools in tools/visualization."""
import argparse
import os.path as osp
from glob import glob
from typing import List, Optional, Tuple

import numpy as np
from torch import Tensor

from mmcontext.utils.errors import UserError
from mmcontext.visualization.networks import (
    Network,
    input_size,
    load_network,
    read_image,
    settle,
    to_input,
)

_NETWORK = ('config file or name of the zoo, CONFIG=CHECKPOINT, or a checkpoint of training, '
            'which holds its config')
_PICTURES = ('.png', '.svg', '.pdf', '.jpg', '.jpeg')


def _picture(path: str) -> str:
    """A file for a figure, checked before minutes are spent on the figure."""
    if not path.lower().endswith(_PICTURES):
        raise argparse.ArgumentTypeError(f'must end with {", ".join(_PICTURES)}, got {path!r}')
    if not osp.isdir(osp.dirname(path) or '.'):
        raise argparse.ArgumentTypeError(f'there is no folder {osp.dirname(path)!r}')
    return path


def positive(text: str) -> int:
    """A positive number from the command line."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be positive, got {text}')
    return int(text)


def make_parser(description: str, networks: Optional[str] = None, images: bool = False,
                layer: bool = False) -> argparse.ArgumentParser:
    """A parser with ``--out`` and optional arguments.

    Args:
        description: The tool's docstring.
        networks: 'one' or 'many' positional networks; None for none.
        images: Whether the tool takes ``--image`` and ``--size``.
        layer: Whether it takes ``--layer``.
    """
    parser = argparse.ArgumentParser(description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    if networks:
        parser.add_argument('network', nargs='+' if networks == 'many' else None, help=_NETWORK)
    if images:
        parser.add_argument('--image', nargs='+', default=[], metavar='FILE',
                            help='image files or folders (default: noise)')
        parser.add_argument('--size', type=positive,
                            help="side of the images in pixels (default: the config's)")
    if layer:
        parser.add_argument('--layer', help='name of the layer (default: one in the middle)')
    parser.add_argument('--out', required=True, type=_picture, metavar='PICTURE',
                        help='file to write (.png, .svg, .pdf, .jpg)')
    return parser


def load(args: argparse.Namespace) -> List[Network]:
    """The networks named on the command line."""
    specs = args.network if isinstance(args.network, list) else [args.network]
    return [load_network(spec) for spec in specs]


def inputs_of(args: argparse.Namespace, network: Network, most: int = 1,
              noise: int = 1) -> Tuple[List[np.ndarray], Tensor]:
    """The images on the command line as squares, or noise, and the network's inputs for them.

    An untrained network is adapted to them, see
    :func:`mmcontext.visualization.networks.settle`.

    Args:
        args: Parsed arguments.
        network: Its config gives the size if the command line does not.
        most: Maximum number of images to read.
        noise: Number of noise images to use if there are no images.

    Returns:
        RGB, uint8 [size, size, 3] each; float [B, C, size, size].

    Raises:
        UserError: There is no such image, or none in a folder.
    """
    images = _images(args.image, args.size or input_size(network.cfg), most, noise)
    x = to_input(network, images)
    if not network.trained:
        settle(network.backbone, x)
    return images, x


def _images(paths: List[str], size: int, most: int, noise: int) -> List[np.ndarray]:
    files = []
    for path in paths:
        inside = sorted(glob(osp.join(path, '**', '*.*'), recursive=True))
        found = [name for name in inside
                 if name.lower().endswith(('.png', '.jpg', '.jpeg', '.bmp'))]
        if osp.isdir(path) and not found:
            raise UserError(f'folder {path} holds no images (.png, .jpg, .jpeg, .bmp)')
        files += found or [path]
    if not files:
        generator = np.random.RandomState(0)
        return [generator.randint(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(noise)]
    return [read_image(path, size) for path in files[:most]]
