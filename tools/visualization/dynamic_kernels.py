"""Draw the kernels that involution, C-volution or CoT compute at chosen pixels of an image.

    python tools/visualization/dynamic_kernels.py work_dirs/cednet26_digits/epoch_16.pth \
        --image data/digits/val/3/0003.png --pixels 0.3,0.5 0.7,0.5 --out kernels.png

Next to the image: the energy of every pixel's kernels; the kernels of the first groups at the
pixels; C-volution's gate, or CoT's weight of dynamic versus static context, per channel.
"""
import sys

import torch
from matplotlib.ticker import AutoLocator
from mmengine.utils import track_iter_progress

from mmcontext.utils.cli import run
from mmcontext.utils.errors import UserError
from mmcontext.visualization.command_line import inputs_of, load, make_parser, positive
from mmcontext.visualization.dynamic_kernels import KINDS, dynamic_kernels
from mmcontext.visualization.figures import new_figure, save_figure, show_map
from mmcontext.visualization.networks import pick_layer, recorded_inputs


def pixel(text: str) -> tuple:
    """Row and column as fractions of the image."""
    row, column = (float(part) for part in text.split(','))
    if not (0 <= row < 1 and 0 <= column < 1):
        raise ValueError(text)
    return row, column


def main() -> None:
    """Command line entry point."""
    parser = make_parser(__doc__, networks='one', images=True, layer=True)
    parser.add_argument('--pixels', nargs='+', type=pixel, metavar='ROW,COLUMN',
                        default=[(0.5, 0.5), (0.25, 0.25), (0.75, 0.6)],
                        help='shares of height and width, 0 to 1')
    parser.add_argument('--groups', type=positive, default=4, help='kernels shown at each pixel')
    args = parser.parse_args()
    [network] = load(args)
    name, layer = pick_layer(network.model, KINDS, args.layer)
    [image], x = inputs_of(args, network)
    with recorded_inputs(layer) as inputs, torch.no_grad():
        network.backbone(x)
    if layer not in inputs:
        raise UserError(f'layer {name} was not run')
    made = dynamic_kernels(layer, inputs[layer])
    groups = min(args.groups, len(made.kernels))
    height, width = made.energy.shape
    extra = made.gate if made.gate is not None else made.attention
    rows = max(len(args.pixels), 1 if extra is None else 2)
    figure, axes = new_figure(rows, groups + 2, side=1.5)
    for axis in axes[1:].flat:
        axis.set_axis_off()
    for row, (down, right) in enumerate(track_iter_progress(args.pixels)):
        y, x = int(down * height), int(right * width)
        for axis in axes[row, :-1]:
            axis.set_axis_on()
        axes[row, 0].imshow(image)
        axes[row, 0].plot(right * image.shape[1], down * image.shape[0], 'r+', markersize=14)
        axes[row, 0].set_title(f'pixel {y}, {x} of {height}x{width}', fontsize=7)
        for group in range(groups):
            show_map(axes[row, group + 1], made.kernels[group, :, :, y, x].numpy(),
                     f'kernel {group}', signed=True)
        axes[0, -1].plot(x, y, 'r+', markersize=8)
    show_map(axes[0, -1], made.energy.numpy(), 'energy')
    if extra is not None:
        axes[1, -1].set_axis_on()
        axes[1, -1].bar(range(len(extra)), extra.numpy(), width=1)
        axes[1, -1].set_title('gate' if made.gate is not None else 'weight of dynamic context',
                              fontsize=7)
        axes[1, -1].set_xlabel('channel', fontsize=6)
        axes[1, -1].tick_params(labelsize=6)
        axes[1, -1].yaxis.set_major_locator(AutoLocator())
    figure.suptitle(f'{network.label}, {name}', fontsize=8)
    save_figure(figure, args.out)


if __name__ == '__main__':
    sys.exit(run(main))
