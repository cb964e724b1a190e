"""Convert a checkpoint of the authors' code into one for this package.

Example:
    python tools/model_converters/convert_official.py SRC DST --arch cednet50
"""
import argparse
import os.path as osp
import sys

from mmcontext.converters import ARCHITECTURES, CCNN_ARCH, convert_checkpoint
from mmcontext.utils.errors import UserError

CONFIG_ROOT = osp.join(osp.dirname(__file__), '..', '..', 'configs')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', help="the authors' checkpoint")
    parser.add_argument('destination', help='file to write')
    parser.add_argument('--arch', required=True, metavar='NAME',
                        help='architecture: ' + ', '.join([*ARCHITECTURES, CCNN_ARCH]))
    args = parser.parse_args()
    try:
        convert_checkpoint(args.source, args.destination, args.arch, CONFIG_ROOT)
    except UserError as error:
        print(f'convert_official.py: {error}', file=sys.stderr)
        return 1
    print(f'{args.arch}: wrote {args.destination}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
