"""Compare networks: parameters, FLOPs, latency, throughput, memory and receptive field.

    python tools/visualization/compare.py resnet50_8xb32_in1k rednet50 cednet50 \
        --csv compare.csv --out compare.png
"""
import sys

from mmcontext.utils.cli import run
from mmcontext.visualization.command_line import inputs_of, load, make_parser, positive
from mmcontext.visualization.compare import COLUMNS, as_markdown, compare, write_csv
from mmcontext.visualization.figures import new_figure, save_figure
from mmcontext.visualization.networks import input_size


def main() -> None:
    """Command line entry point."""
    parser = make_parser(__doc__, networks='many', images=True)
    parser.add_argument('--batch', type=positive, default=8,
                        help='images for throughput and memory')
    parser.add_argument('--rounds', type=positive, default=5, help='timings, of which the median')
    parser.add_argument('--csv', help='file for the table')
    args = parser.parse_args()
    networks = load(args)
    args.size = args.size or input_size(networks[0].cfg)
    fields = [inputs_of(args, network, most=2)[1] for network in networks] if args.image else None
    rows = compare(networks, args.size, args.batch, args.rounds, fields)
    print('\n' + as_markdown(rows))
    if args.csv:
        write_csv(rows, args.csv)
    figure, axes = new_figure(1, len(COLUMNS) - 1, side=2)
    for axis, column in zip(axes[0], COLUMNS[1:]):
        bars = axis.barh([row['network'] for row in rows], [row[column] for row in rows])
        axis.bar_label(bars, fontsize=6)
        axis.margins(x=0.3)
        axis.invert_yaxis()
        axis.set_title(column, fontsize=7)
    axes[0, 0].set_yticks(range(len(rows)), [row['network'] for row in rows], fontsize=6)
    save_figure(figure, args.out)


if __name__ == '__main__':
    sys.exit(run(main))
