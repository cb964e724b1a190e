"""Print parameters and FLOPs of the published detectors with the published figures.

    python tools/analysis/detection_table.py            at 1280x800
    python tools/analysis/detection_table.py --params   parameters only, in seconds

The authors' counter leaves out frozen parameters, so their figure is compared with the number of
trainable parameters. FLOPs are multiply-adds; configs/detection.md explains the differences.
"""
import argparse
import logging
import sys
from pathlib import Path
from typing import Dict, NamedTuple, Optional

from mmengine.config import Config

from mmcontext.engine.flops import build_model, config_complexity

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
SHAPE = (800, 1280)


class Published(NamedTuple):
    """Figures of the authors: parameters in millions, multiply-adds in billions."""
    params: float
    flops: Optional[float] = None


# https://github.com/d-li14/involution (RedNet) and the C-volution paper (CedNet)
PUBLISHED: Dict[str, Published] = {
    'rednet/faster_rcnn_rednet50_fpn': Published(31.6, 177.9),
    'rednet/faster_rcnn_rednet50_neck_fpn': Published(29.5, 135.0),
    'rednet/mask_rcnn_rednet50_fpn': Published(34.2, 224.2),
    'rednet/mask_rcnn_rednet50_neck_fpn': Published(32.2, 181.3),
    'rednet/retinanet_rednet50_fpn': Published(27.8, 210.1),
    'rednet/retinanet_rednet50_neck_fpn': Published(26.3, 199.9),
    'cednet/faster_rcnn_cednet50_neck_fpn': Published(29.8),
    'cednet/mask_rcnn_cednet50_neck_fpn': Published(33.4),
}


def trained_params(cfg: Config) -> int:
    """Parameters of a config's model that are not frozen."""
    return sum(p.numel() for p in build_model(cfg).parameters() if p.requires_grad)


def _difference(ours: float, published: Optional[float]) -> str:
    return '-' if published is None else f'{100 * (ours / published - 1):+.1f} %'


def print_table(count_flops: bool) -> None:
    """Print a line for every published detector."""
    row = '{:<38}{:>11}{:>11}{:>11}{:>9}{:>11}{:>11}{:>9}'
    print(row.format('config', 'params M', 'trained M', 'published', '', 'FLOPs G', 'published',
                     ''))
    for name, published in PUBLISHED.items():
        cfg = Config.fromfile(CONFIGS / f'{name}_1x_coco.py')
        trained = trained_params(cfg) / 1e6
        if count_flops:
            counts = config_complexity(cfg, SHAPE)
            params, flops = counts.params / 1e6, counts.flops / 1e9
            complexity = (f'{flops:.1f}', published.flops or '-',
                          _difference(flops, published.flops))
        else:
            params = sum(p.numel() for p in build_model(cfg).parameters()) / 1e6
            complexity = ('-', published.flops or '-', '')
        print(row.format(name.split('/')[1], f'{params:.3f}', f'{trained:.3f}', published.params,
                         _difference(trained, published.params), *complexity), flush=True)


def main() -> int:
    """Command line entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--params', action='store_true', help='leave out the FLOPs')
    args = parser.parse_args()
    # Silence mmdet's warnings about its defaults.
    logging.disable(logging.WARNING)
    print_table(not args.params)
    return 0


if __name__ == '__main__':
    sys.exit(main())
