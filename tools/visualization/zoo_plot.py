"""Plot the published accuracy of the zoo over parameters, FLOPs and measured latency.

    python tools/visualization/zoo_plot.py --out zoo.png
    python tools/benchmarks/bench_models.py --out models.json
    python tools/visualization/zoo_plot.py --latency models.json --out zoo.png
"""
import sys

from matplotlib.ticker import AutoLocator
from mmengine.utils import track_iter_progress

from mmcontext.utils.cli import run
from mmcontext.visualization.command_line import make_parser
from mmcontext.visualization.figures import new_figure, save_figure
from mmcontext.visualization.zoo_points import read_latencies, zoo_points


def main() -> None:
    """Command line entry point."""
    parser = make_parser(__doc__)
    parser.add_argument('--latency', metavar='JSON', help='result of bench_models.py --out')
    args = parser.parse_args()
    points = zoo_points(read_latencies(args.latency))
    quantities = [('params', 'parameters (M)'), ('flops', 'multiply-adds (G)')]
    if args.latency:
        quantities.append(('latency', 'measured latency (ms)'))
    figure, axes = new_figure(1, len(quantities), side=4)
    for axis, (quantity, label) in zip(axes[0], track_iter_progress(quantities)):
        axis.xaxis.set_major_locator(AutoLocator())
        axis.yaxis.set_major_locator(AutoLocator())
        for index, family in enumerate(sorted({point.family for point in points})):
            line = sorted((getattr(point, quantity), point.top1) for point in points
                          if point.family == family and getattr(point, quantity) is not None)
            if line:
                axis.plot(*zip(*line), marker='o', label=family, color=f'C{index}')
        axis.set_xlabel(label)
        axis.set_ylabel('ImageNet top-1, paper (%)')
    axes[0, 0].legend(fontsize=6, loc='lower right', ncols=2)
    save_figure(figure, args.out)


if __name__ == '__main__':
    sys.exit(run(main))
