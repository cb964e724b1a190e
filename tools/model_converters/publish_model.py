"""Write a checkpoint for others: the weights as safetensors, without the state of training.

Example:
    python tools/model_converters/publish_model.py work_dirs/cednet26_digits/epoch_16.pth \
        cednet26_digits.safetensors --licence Apache-2.0 --source 'digits of scikit-learn'
"""
import argparse
import sys

from mmcontext.utils.cli import run
from mmcontext.zoo.publish import publish


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkpoint', help='checkpoint of training, or a converted one')
    parser.add_argument('destination', help='NAME.safetensors; digits of the hash are put in')
    parser.add_argument('--config', help='config file or name of the zoo (default: the one in '
                        'the checkpoint)')
    parser.add_argument('--classes', nargs='+', metavar='NAME',
                        help='names of the classes (default: those in the checkpoint)')
    parser.add_argument('--source', default='', help='where the weights come from')
    parser.add_argument('--licence', default='', help='licence of the weights')
    args = parser.parse_args()
    path = publish(args.checkpoint, args.destination, args.config, args.classes, args.source,
                   args.licence)
    print(f'wrote {path}')


if __name__ == '__main__':
    sys.exit(run(main))
