"""Test an exported graph in onnxruntime, on the test set and with the metric of its config."""
import argparse
import sys
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.utils import ProgressBar

from mmcontext.deployment.runtime import OnnxGraph, leave_images_raw, serve
from mmcontext.engine.runner import make_runner
from mmcontext.utils.cli import add_common_arguments, load_config, run
from mmcontext.utils.errors import UserError


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, or mmcontext::FAMILY/NAME.py')
    parser.add_argument('model', help='file that export_onnx.py wrote for it')
    parser.add_argument('--library', help='library that export_onnx.py --own-operators wrote')
    add_common_arguments(parser)
    return parser.parse_args()


class Progress(Hook):
    """A progress bar over the batches."""

    def before_test(self, runner) -> None:
        self._bar = ProgressBar(len(runner.test_dataloader))

    def after_test_iter(self, *args, **kwargs) -> None:
        self._bar.update()


def main() -> None:
    """Command line entry point."""
    args = parse_args()
    graph = OnnxGraph(args.model, args.library)
    cfg = load_config(args)
    exported = graph.metadata['config']
    if exported != Path(cfg.filename).name:
        raise UserError(f'{args.model} was exported from {exported}, not from {args.config}')
    if graph.metadata['preprocess'] == 'in':
        leave_images_raw(cfg)
    cfg.load_from, cfg.resume = None, False
    runner = make_runner(cfg)
    runner.register_hook(Progress())
    serve(runner.model, graph)
    runner.test()


if __name__ == '__main__':
    sys.exit(run(main))
