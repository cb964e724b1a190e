"""Draw the effective receptive fields of networks side by side, and the areas that contain them.

    python tools/visualization/receptive_field.py resnet50_8xb32_in1k cednet50 --out field.png
    python tools/visualization/receptive_field.py work_dirs/cednet26_digits/epoch_16.pth \
        --image data/digits/val --stage 2 --out field.png
"""
import sys

import torch

from mmcontext.utils.cli import run
from mmcontext.utils.errors import UserError
from mmcontext.visualization import receptive_field
from mmcontext.visualization.command_line import inputs_of, load, make_parser, positive
from mmcontext.visualization.figures import new_figure, save_figure, show_map

_CELLS = 75  # drawn along a side, at most


def main() -> None:
    """Command line entry point."""
    parser = make_parser(__doc__, networks='many', images=True)
    parser.add_argument('--stage', type=int, default=-1, help='0 to 3 (default: the last)')
    parser.add_argument('--num-images', type=positive, default=8)
    args = parser.parse_args()
    networks = load(args)
    figure, axes = new_figure(1, len(networks))
    for axis, network in zip(axes[0], networks):
        _, x = inputs_of(args, network, most=args.num_images, noise=args.num_images)
        try:
            field = receptive_field.field_of(network, x, args.stage)
        except ValueError as error:
            raise UserError(f'{network.label}: {error}') from error
        held = receptive_field.areas(field)
        # The field spans orders of magnitude: its fourth root shows both the centre and the rim,
        # and the mean over a few pixels removes noise.
        cells = torch.nn.functional.avg_pool2d(field[None], -(-len(field) // _CELLS))[0]
        show_map(axis, (cells / cells.max()).pow(0.25).numpy(), network.label)
        axis.set_xlabel('\n'.join(f'{share:.0%}: {side} px, {area:.1%}'
                                  for share, (side, area) in held.items()), fontsize=7)
        print(f'\n{network.label}: ' + ', '.join(
            f'{share:.0%} in a square of {side} px ({area:.1%} of the image)'
            for share, (side, area) in held.items()))
    save_figure(figure, args.out)


if __name__ == '__main__':
    sys.exit(run(main))
