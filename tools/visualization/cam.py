"""Draw where classifiers look, with pytorch-grad-cam.

    python tools/visualization/cam.py configs/cednet/cednet50_imagenet.py=cednet50.pth \
        --image dog.jpg --out cam.png
"""
import sys

from mmengine.utils import track_iter_progress

from mmcontext.utils.cli import run
from mmcontext.visualization.cam import METHODS, class_activation
from mmcontext.visualization.command_line import inputs_of, load, make_parser
from mmcontext.visualization.figures import new_figure, save_figure, show_map
from mmcontext.visualization.networks import logits


def main() -> None:
    """Command line entry point."""
    parser = make_parser(__doc__, networks='many', images=True)
    parser.add_argument('--method', choices=METHODS, default=METHODS[0])
    parser.add_argument('--stage', type=int, help='0 to 3 (default: the last)')
    parser.add_argument('--class', type=int, dest='label', help='number of the class (default: '
                        'the predicted one)')
    args = parser.parse_args()
    networks = load(args)
    images, _ = inputs_of(args, networks[0], most=6)
    figure, axes = new_figure(len(networks) + 1, len(images), side=1.6)
    for axis, image in zip(axes[0], images):
        axis.imshow(image)
    for row, network in zip(axes[1:], track_iter_progress(networks)):
        images, x = inputs_of(args, network, most=6)
        predicted = logits(network, x).argmax(1).tolist()
        labels = predicted if args.label is None else [args.label] * len(images)
        maps = class_activation(network, x, args.method, labels, args.stage)
        for axis, image, values, label in zip(row, images, maps, labels):
            show_map(axis, values, f'class {label}', image=image)
        row[0].set_ylabel(network.label, fontsize=7)
    save_figure(figure, args.out)


if __name__ == '__main__':
    sys.exit(run(main))
