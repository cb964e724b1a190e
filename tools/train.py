"""Train a model of mmpretrain, mmdet or mmseg from a config."""
import argparse
import sys

import own_package  # noqa: F401

from mmcontext.engine.runner import make_runner
from mmcontext.utils.cli import add_common_arguments, load_config, run
from mmcontext.utils.dist import on_cpu
from mmcontext.utils.errors import UserError


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, or mmcontext::FAMILY/NAME.py')
    parser.add_argument(
        '--resume', nargs='?', const='auto', metavar='CHECKPOINT',
        help="checkpoint to resume from; alone or as 'auto': the newest of the work dir")
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    compiling = parser.add_mutually_exclusive_group()
    compiling.add_argument(
        '--compile', action='store_true', help='torch.compile of the backbone')
    compiling.add_argument(
        '--cuda-graph', action='store_true',
        help='CUDA graphs of the backbone, for images of few sizes')
    parser.add_argument(
        '--auto-scale-lr', action='store_true',
        help='scale the learning rate by the actual over the original batch size')
    parser.add_argument('--no-validate', action='store_true', help='train without validation')
    add_common_arguments(parser)
    return parser.parse_args()


def merge_args(cfg, args: argparse.Namespace) -> None:
    """Merge the options into the config.

    Raises:
        UserError: if the config or the machine does not support an option.
    """
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        if on_cpu():
            raise UserError('--amp needs an accelerator and none is found; leave it out')
        wrapper = cfg.optim_wrapper.get('type', 'OptimWrapper')
        if wrapper not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise UserError(f'--amp replaces OptimWrapper, and the config has {wrapper!r}')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.cuda_graph and on_cpu():
        raise UserError('--cuda-graph needs a GPU and none is found; leave it out')
    for wanted, hook in ((args.compile, 'CompileHook'), (args.cuda_graph, 'CudaGraphHook')):
        if wanted:
            cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type=f'mmcontext.{hook}')]
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UserError(
                f'--auto-scale-lr needs auto_scale_lr.base_batch_size in {args.config}')
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume


def main() -> None:
    """Command line entry point."""
    args = parse_args()
    cfg = load_config(args)
    merge_args(cfg, args)
    make_runner(cfg).train()


if __name__ == '__main__':
    sys.exit(run(main))
