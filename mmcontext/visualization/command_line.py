"""The command line that the tools of tools/visualization share."""
import argparse
import os.path as osp
from glob import glob
from typing import List, Optional

import numpy as np

from mmcontext.utils.errors import UserError
from mmcontext.visualization.networks import Network, input_size, load_network, read_image

_NETWORK = ('config file or name of the zoo, CONFIG=CHECKPOINT, or a checkpoint of training, '
            'which holds its config')


def make_parser(description: str, networks: Optional[str] = None, images: bool = False,
                layer: bool = False) -> argparse.ArgumentParser:
    """A parser with ``--out`` and what else is asked for.

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
        parser.add_argument('--size', type=int,
                            help="side of the images in pixels (default: the config's)")
    if layer:
        parser.add_argument('--layer', help='name of the layer (default: one in the middle)')
    parser.add_argument('--out', required=True, help='picture to write (.png, .svg, .pdf)')
    return parser


def load(args: argparse.Namespace) -> List[Network]:
    """The networks named on the command line."""
    specs = args.network if isinstance(args.network, list) else [args.network]
    return [load_network(spec) for spec in specs]


def images_of(args: argparse.Namespace, network: Network, noise: int = 1) -> List[np.ndarray]:
    """The images named on the command line as squares, or noise.

    Args:
        args: Parsed arguments.
        network: Its config gives the size where the command line does not.
        noise: How many images of noise stand in for none.

    Returns:
        RGB, uint8 [size, size, 3] each.
    """
    size = args.size or input_size(network.cfg)
    if size < 1:
        raise UserError(f'--size must be positive, got {size}')
    files = []
    for path in args.image:
        inside = sorted(glob(osp.join(path, '**', '*.*'), recursive=True))
        files += [name for name in inside
                  if name.lower().endswith(('.png', '.jpg', '.jpeg', '.bmp'))] or [path]
    if not files:
        generator = np.random.RandomState(0)
        return [generator.randint(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(noise)]
    return [read_image(path, size) for path in files]
