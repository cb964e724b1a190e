"""Plot loss, learning rate and metrics of one or more runs from mmengine's own logs.

    python tools/visualization/curves.py work_dirs/cednet26_digits work_dirs/rednet26_digits \
        --out curves.png
"""
import os.path as osp
import sys

from matplotlib.ticker import AutoLocator
from mmengine.utils import track_iter_progress

from mmcontext.utils.cli import run
from mmcontext.visualization.command_line import make_parser
from mmcontext.visualization.curves import panels, read_curves
from mmcontext.visualization.figures import new_figure, save_figure


def main() -> None:
    """Command line entry point."""
    parser = make_parser(__doc__)
    parser.add_argument('work_dir', nargs='+', help='folder of a run')
    args = parser.parse_args()
    runs = {osp.basename(osp.normpath(folder)): read_curves(folder)
            for folder in track_iter_progress(args.work_dir)}
    titles = list(dict.fromkeys(title for curves in runs.values() for title in panels(curves)))
    figure, axes = new_figure(1, len(titles), side=3)
    for axis, title in zip(axes[0], titles):
        axis.xaxis.set_major_locator(AutoLocator())
        axis.yaxis.set_major_locator(AutoLocator())
        for label, curves in runs.items():
            for name in panels(curves).get(title, ()):
                suffix = '' if name == title else f', {name}'
                axis.plot(*curves[name], marker='.', label=label + suffix)
        axis.set_title(title, fontsize=8)
        axis.legend(fontsize=6)
    save_figure(figure, args.out)


if __name__ == '__main__':
    sys.exit(run(main))
