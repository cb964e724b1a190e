"""Test a checkpoint of a mmpretrain, mmdet or mmseg config."""
import argparse
import sys
from copy import deepcopy

import own_package  # noqa: F401
from mmengine.config import ConfigDict
from mmengine.fileio import dump

from mmcontext.engine.runner import make_runner
from mmcontext.utils.checkpoint import load_checkpoint_file
from mmcontext.utils.cli import add_common_arguments, load_config, run
from mmcontext.utils.errors import UserError


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, or mmcontext::FAMILY/NAME.py')
    parser.add_argument('checkpoint', help='checkpoint file, or a URL that mmengine knows')
    parser.add_argument(
        '--out', '--dump', metavar='PATH',
        help='write the predictions to a .pkl file for offline evaluation; for mmseg also a '
        'folder, for the predicted maps')
    parser.add_argument(
        '--out-item', choices=['pred', 'metrics'], default='pred',
        help='what --out writes: predictions, or the metrics (.json, .yml or .pkl)')
    parser.add_argument(
        '--tta', action='store_true',
        help="test-time augmentation: the config's tta_pipeline and tta_model, else flipping")
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='folder for images of the predictions')
    parser.add_argument('--interval', type=int, default=1, help='draw every N-th sample')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds that --show shows an image')
    add_common_arguments(parser)
    return parser.parse_args()


def trigger_visualization(cfg, args: argparse.Namespace) -> None:
    """Switch on the visualization hook of the library that the config is for."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise UserError(f'--show and --show-dir need default_hooks.visualization in {args.config}')
    hook.update(interval=args.interval, show=args.show, wait_time=args.wait_time)
    if cfg.get('default_scope') == 'mmpretrain':
        if args.tta:
            raise UserError('--tta cannot be drawn by mmpretrain; leave out --show and --show-dir')
        hook.update(enable=True, out_dir=args.show_dir)
        return
    hook.draw = True
    if args.show_dir and cfg.default_scope == 'mmdet':
        hook.test_out_dir = args.show_dir
    elif args.show_dir:
        cfg.visualizer.save_dir = args.show_dir


def flip_tta_pipeline(cfg) -> list:
    """The test pipeline with the original and the flipped image, for configs without their own."""
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    *steps, pack = deepcopy(dataset.pipeline)
    if cfg.default_scope == 'mmdet':
        pack['meta_keys'] = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor',
                             'flip', 'flip_direction')
    flips = [dict(type='RandomFlip', prob=1.), dict(type='RandomFlip', prob=0.)]
    return [*steps, dict(type='TestTimeAug', transforms=[flips, [pack]])]


def apply_tta(cfg) -> None:
    """Wrap the model and replace the pipeline for test-time augmentation.

    Raises:
        UserError: if the config has none and there is no default for its library.
    """
    defaults = {
        'mmpretrain': dict(type='mmpretrain.AverageClsScoreTTA'),
        'mmdet': dict(type='DetTTAModel', tta_cfg=dict(
            nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)),
    }
    scope = cfg.get('default_scope')
    if ('tta_model' not in cfg or 'tta_pipeline' not in cfg) and scope not in defaults:
        raise UserError('--tta needs tta_model and tta_pipeline in the config')
    cfg.setdefault('tta_model', ConfigDict(defaults.get(scope)))
    if 'tta_pipeline' not in cfg:
        cfg.tta_pipeline = flip_tta_pipeline(cfg)
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def add_dump(runner, cfg, path: str) -> None:
    """Collect the predictions in a pickle that the library's offline evaluation reads."""
    if cfg.get('default_scope') == 'mmdet':
        from mmdet.evaluation import DumpDetResults as DumpResults
    else:
        from mmengine.evaluator import DumpResults
    runner.test_evaluator.metrics.append(DumpResults(out_file_path=path))


def main() -> None:
    """Command line entry point."""
    args = parse_args()
    cfg = load_config(args)
    if '://' not in args.checkpoint:
        # Check that it exists and is readable before spending minutes on building.
        load_checkpoint_file(args.checkpoint, map_location='cpu')
    cfg.load_from = args.checkpoint
    cfg.resume = False
    is_pickle = args.out is not None and args.out.endswith(('.pkl', '.pickle'))
    maps_folder = args.out is not None and args.out_item == 'pred' and not is_pickle
    if maps_folder and cfg.get('default_scope') != 'mmseg':
        raise UserError(f'--out must end with .pkl or .pickle, got {args.out}')
    if args.out_item == 'metrics' and args.out and not args.out.endswith(
            ('.json', '.yml', '.yaml', '.pkl', '.pickle')):
        raise UserError(f'--out must end with .json, .yml or .pkl for metrics, got {args.out}')
    if maps_folder:
        cfg.test_evaluator.update(output_dir=args.out, keep_results=True)
    if args.show or args.show_dir:
        trigger_visualization(cfg, args)
    if args.tta:
        apply_tta(cfg)

    runner = make_runner(cfg)
    if is_pickle and args.out_item == 'pred':
        add_dump(runner, cfg, args.out)
    metrics = runner.test()
    if args.out and args.out_item == 'metrics' and runner.rank == 0:
        dump(metrics, args.out)


if __name__ == '__main__':
    sys.exit(run(main))
