"""Draw what each level of a CoConv or PyConv layer responds to in an image.

    python tools/visualization/pyramid.py work_dirs/coresnet50_digits/epoch_16.pth \
        --image data/digits/val/3/0003.png --out pyramid.png
"""
import sys

import torch
from mmengine.utils import track_iter_progress

from mmcontext.utils.cli import run
from mmcontext.visualization.command_line import inputs_of, load, make_parser
from mmcontext.visualization.figures import new_figure, save_figure, show_map
from mmcontext.visualization.networks import layers_of, pick_layer, recorded_inputs
from mmcontext.visualization.pyramid import KINDS, levels


def main() -> None:
    """Command line entry point."""
    args = make_parser(__doc__, networks='one', images=True, layer=True).parse_args()
    [network] = load(args)
    if args.layer is None:
        # The first layer has the most levels.
        args.layer = next(iter(layers_of(network.model, KINDS)), None)
    name, layer = pick_layer(network.model, KINDS, args.layer)
    images, x = inputs_of(args, network, most=4)
    figure, axes = new_figure(len(images), len(layer.convs) + 1, side=1.8)
    for row, image, one in zip(axes, images, track_iter_progress(list(x.split(1)))):
        with recorded_inputs(layer) as inputs, torch.no_grad():
            network.backbone(one)
        row[0].imshow(image)
        for axis, level in zip(row[1:], levels(layer, inputs[layer])):
            show_map(axis, level.response.numpy(),
                     f'{level.kernel_size[0]}x{level.kernel_size[1]}, dilation '
                     f'{level.dilation[0]}\n{level.frequency:.2f} cycles per pixel')
    figure.suptitle(f'{network.label}, {name}', fontsize=8)
    save_figure(figure, args.out)


if __name__ == '__main__':
    sys.exit(run(main))
