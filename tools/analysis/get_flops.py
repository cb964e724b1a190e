"""Print the parameters and FLOPs (multiply-adds) of a config, or of all networks.

    python tools/analysis/get_flops.py configs/cednet/cednet50_imagenet.py
    python tools/analysis/get_flops.py configs/rednet/fpn_rednet50_512x1024_80k_cityscapes.py
    python tools/analysis/get_flops.py --table
"""
import argparse
import sys
from pathlib import Path
from typing import List, Optional

import yaml
from mmengine.config import Config

from mmcontext.engine.flops import config_complexity

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
FAMILIES = ('coconv', 'pyconv', 'cotnet', 'rednet', 'cednet', 'ccnn')


def default_shape(cfg: Config) -> tuple:
    """Image size of the test pipeline, else the one used for the published figures."""
    for step in reversed(cfg.get('test_pipeline') or ()):
        size = step.get('crop_size', step.get('scale'))
        if isinstance(size, int):
            return (size, size)
    return {'mmdet': (800, 1280), 'mmseg': (512, 1024)}.get(cfg.get('default_scope'), (224, 224))


def input_shape(cfg: Config, given: Optional[List[int]]) -> tuple:
    """The shape to count at: (H, W), or (length, ) for networks that read sequences."""
    if (cfg.model.get('neck') or {}).get('dim') == 1:
        if not given or len(given) > 1:
            raise ValueError('this network reads sequences: give --shape LENGTH')
        return tuple(given)
    if given:
        return tuple(given) if len(given) == 2 else (given[0], given[0])
    return default_shape(cfg)


def print_config(path: str, shape: Optional[List[int]]) -> None:
    """Print the counts of one config."""
    cfg = Config.fromfile(path)
    if 'model' not in cfg or 'default_scope' not in cfg:
        raise ValueError(f'{path} has no model: it is not the config of a network')
    shape = input_shape(cfg, shape)
    counts = config_complexity(cfg, shape)
    print(f'Input shape: {shape}\nFLOPs: {counts.flops / 1e9:.4g} G multiply-adds')
    for name, flops in sorted(counts.by_operator.items(), key=lambda item: -item[1]):
        print(f'    {name}: {flops / 1e9:.4g} G')
    print(f'Params: {counts.params / 1e6:.3f} M')
    if counts.training_params:
        print(f'    of which auxiliary heads, for training only: '
              f'{counts.training_params / 1e6:.3f} M')


def print_table() -> None:
    """Print every ImageNet network with its published figures."""
    header = ('network', 'size', 'params M', 'published', 'FLOPs G', 'published', 'difference')
    row = '{:<34}{:>6}{:>10}{:>11}{:>9}{:>11}{:>12}'
    print(row.format(*header))
    for family in FAMILIES:
        for model in yaml.safe_load((CONFIGS / family / 'metafile.yml').read_text())['Models']:
            metadata = model['Metadata']
            if 'FLOPs' not in metadata:
                continue
            cfg = Config.fromfile(CONFIGS.parent / model['Config'])
            shape = default_shape(cfg)
            counts = config_complexity(cfg, shape)
            params, flops = (metadata.get(f'Reference {name}', '-')
                             for name in ('Parameters (M)', 'FLOPs (G)'))
            difference = '-' if flops == '-' else f'{counts.flops / flops / 1e7 - 100:+.1f} %'
            print(row.format(
                model['Name'], shape[0], f'{counts.params / 1e6:.3f}', params,
                f'{counts.flops / 1e9:.2f}', flops, difference), flush=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='?', help='config file of a network')
    parser.add_argument('--shape', type=int, nargs='+', metavar='SIZE',
                        help="input height and width, or one number for both; by default the "
                        "config's own test crop, 800 1280 for detection, 512 1024 for "
                        'segmentation')
    parser.add_argument('--table', action='store_true',
                        help='print all ImageNet networks beside the published figures')
    args = parser.parse_args()
    if args.table == bool(args.config):
        parser.error('give a config or --table')
    if args.config and not Path(args.config).is_file():
        parser.error(f'no such config: {args.config}')
    if args.shape and (len(args.shape) > 2 or min(args.shape) < 1):
        parser.error(f'--shape takes one or two numbers from 1 on, got {args.shape}')
    return args


def main() -> int:
    """Command line entry point; returns the exit status."""
    args = parse_args()
    try:
        if args.table:
            print_table()
        else:
            print_config(args.config, args.shape)
    except (ImportError, SyntaxError, OSError, ValueError) as error:
        print(f'get_flops.py: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
