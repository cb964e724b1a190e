"""Draw continuous kernels as functions and as sampled at several resolutions, with their mask.

    python tools/visualization/continuous_kernels.py work_dirs/ccnn_digits/epoch_16.pth \
        --out kernels.png
    python tools/visualization/continuous_kernels.py work_dirs/ccnn_digits/epoch_16.pth \
        --run work_dirs/ccnn_digits --out masks.png

With --run: a strip of the kernel at every checkpoint, and the widths of all masks.
"""
import sys

import torch

from mmcontext.layers.ckconv import CKConvNd
from mmcontext.utils.checkpoint import load_checkpoint_file
from mmcontext.utils.cli import run
from mmcontext.visualization import continuous_kernels as kernels
from mmcontext.visualization.command_line import inputs_of, load, make_parser, positive
from mmcontext.visualization.figures import new_figure, save_figure, show_map
from mmcontext.visualization.networks import pick_layer

_FINE = 8
_STRIP = 8


def draw_resolutions(layer: CKConvNd, resolutions: list, channels: int):
    """One row per channel: the function, then its samples at each resolution."""
    figure, axes = new_figure(channels, len(resolutions) + 1, side=1.8)
    function = kernels.sample(layer, _FINE)
    for row in range(channels):
        if layer.dim == 1:
            axes[row, 0].plot(kernels.axis_of(function, _FINE, layer), function[row])
        else:
            show_map(axes[row, 0], function[row].numpy(), 'function', signed=True)
        for axis, resolution in zip(axes[row, 1:], resolutions):
            sampled = kernels.sample(layer, resolution)
            taps = 'x'.join(map(str, sampled.shape[1:]))
            if layer.dim == 1:
                axis.stem(kernels.axis_of(sampled, resolution, layer), sampled[row])
            else:
                show_map(axis, sampled[row].numpy(), f'{resolution:g}: {taps} taps', signed=True)
    return figure


def draw_run(network, name: str, layer: CKConvNd, folder: str):
    """A strip of one kernel over the checkpoints, above the widths of all masks."""
    epochs, widths, names = kernels.mask_widths(folder)
    found = kernels.checkpoints_of(folder)
    step = max(len(found) // _STRIP, 1)
    chosen = found[::-step][::-1]
    figure, axes = new_figure(2, len(chosen), side=1.5)
    for axis, (epoch, path) in zip(axes[0], chosen):
        network.model.load_state_dict(load_checkpoint_file(path, 'cpu')['state_dict'])
        kernel = kernels.sample(layer, 1)[0]
        show_map(axis, kernel.numpy(), f'{epoch}: {"x".join(map(str, kernel.shape))}', signed=True)
    grid = axes[1, 0].get_gridspec()
    for axis in axes[1]:
        axis.remove()
    axis = figure.add_subplot(grid[1, :])
    for index, label in enumerate(names):
        axis.plot(epochs, widths[:, index], label=label)
    axis.set_xlabel('checkpoint', fontsize=7)
    axis.set_ylabel('sigma of the mask', fontsize=7)
    axis.tick_params(labelsize=6)
    axis.legend(fontsize=6)
    figure.suptitle(f'{name} over the run', fontsize=8)
    return figure


def main() -> None:
    """Command line entry point."""
    parser = make_parser(__doc__, networks='one', images=True, layer=True)
    parser.add_argument('--resolutions', nargs='+', type=float, default=[0.5, 1, 2])
    parser.add_argument('--channels', type=positive, default=3, help='kernels shown')
    parser.add_argument('--run', help='folder of checkpoints of the network')
    args = parser.parse_args()
    [network] = load(args)
    name, layer = pick_layer(network.model, CKConvNd, args.layer)
    if layer.dim == 2:
        with torch.no_grad():  # the first input may determine kernel sizes
            network.backbone(inputs_of(args, network)[1])
    if args.run:
        save_figure(draw_run(network, name, layer, args.run), args.out)
    else:
        save_figure(draw_resolutions(layer, args.resolutions, args.channels), args.out)


if __name__ == '__main__':
    sys.exit(run(main))
