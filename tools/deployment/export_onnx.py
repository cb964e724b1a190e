"""Export the classifier of a config to ONNX, in standard operators only.

The graph takes a normalised image batch and gives the logits. The model is compared with
onnxruntime, where that is installed, before the tool says that it is done.
"""
import argparse
import inspect
import logging
import sys
import warnings
from pathlib import Path
from typing import Tuple

import torch
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mmcontext.ops import standard_operators
from mmcontext.utils.checkpoint import load_checkpoint_file
from mmcontext.utils.cli import add_cfg_options, load_config, run
from mmcontext.utils.errors import UserError

# The largest difference of two logits, relative to the largest logit.
TOLERANCE = 1e-4
_OPSET = 17


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file of a classifier')
    parser.add_argument('checkpoint', nargs='?',
                        help='checkpoint file; without one the initial weights are exported')
    parser.add_argument('--out', help='file to write (default: CONFIG_NAME.onnx)')
    parser.add_argument(
        '--shape', type=int, nargs='+', metavar='SIZE',
        help="input without the batch, e.g. 3 256 192 (default: the backbone's channels and the "
        "crop of the config's test pipeline)")
    parser.add_argument(
        '--dynamic-size', action='store_true',
        help='let height and width vary too (the batch always may); not for continuous kernels, '
        'whose graph holds the kernel of one size')
    parser.add_argument('--opset', type=int, default=_OPSET, help=f'default: {_OPSET}')
    add_cfg_options(parser)
    return parser.parse_args()


class Logits(nn.Module):
    """The part of a classifier that is exported: images [B, C, ...] -> logits [B, classes]."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images, mode='tensor')


def input_shape(cfg) -> Tuple[int, int, int]:
    """Channels, height and width that the config tests with.

    Raises:
        UserError: The test pipeline does not tell.
    """
    loader = cfg.get('test_dataloader') or {}
    for transform in reversed(loader.get('dataset', {}).get('pipeline', [])):
        size = transform.get('crop_size') or transform.get('scale')
        if size is not None:
            height, width = (size, size) if isinstance(size, int) else size
            return cfg.model.backbone.get('in_channels', 3), height, width
    raise UserError(f"the test pipeline of {cfg.filename} does not tell the input's size; give it "
                    'by --shape')


def build_classifier(cfg, checkpoint: str = None) -> Logits:
    """The classifier of a config with the weights of a checkpoint, in eval mode.

    Raises:
        UserError: The config is not of a classifier, or the checkpoint does not fit.
    """
    if cfg.get('default_scope') != 'mmpretrain':
        raise UserError(f'{cfg.filename} is a config for {cfg.get("default_scope")}; only '
                        'classifiers (mmpretrain) can be exported')
    init_default_scope('mmpretrain')
    classifier = MODELS.build(cfg.model)
    if checkpoint is None:
        logging.disable(logging.INFO)  # A line for every parameter.
        classifier.init_weights()
        logging.disable(logging.NOTSET)
    else:
        weights = load_checkpoint_file(checkpoint, map_location='cpu')
        try:
            classifier.load_state_dict(weights.get('state_dict', weights))
        except RuntimeError as error:
            raise UserError(f'checkpoint {checkpoint} does not fit {cfg.filename}: '
                            f'{error}') from error
    return Logits(classifier).eval()


def export(model: nn.Module, shape: Tuple[int, ...], path: str, dynamic_size: bool = False,
           opset: int = _OPSET) -> None:
    """Write a model to an ONNX file.

    Args:
        model: Takes one tensor [B, *shape] and gives one [B, classes]; in eval mode.
        shape: Of the input, without the batch.
        path: File to write.
        dynamic_size: Whether more than the batch may vary. Defaults to False.
        opset: Version of the operator set. Defaults to 17.
    """
    axes = {0: 'batch'}
    if dynamic_size:
        names = ('height', 'width') if len(shape) == 3 else ('length', )
        axes.update({i + 2: name for i, name in enumerate(names)})
    options = {}
    if 'dynamo' in inspect.signature(torch.onnx.export).parameters:
        # The exporter that all torch since 2.1 have and that needs no further package.
        options['dynamo'] = False
    with warnings.catch_warnings(), standard_operators(), torch.no_grad():
        # Shapes are checked in Python while tracing, which is what they warn of.
        warnings.simplefilter('ignore', torch.jit.TracerWarning)
        warnings.simplefilter('ignore', DeprecationWarning)
        images = torch.randn(2, *shape)
        model(images)  # A continuous kernel may have to be scaled first.
        torch.onnx.export(
            model, (images, ), path, input_names=['images'],
            output_names=['logits'], opset_version=opset,
            dynamic_axes={'images': axes, 'logits': {0: 'batch'}}, **options)


def verify(model: nn.Module, path: str, shape: Tuple[int, ...], batch: int) -> float:
    """Largest difference of the logits in onnxruntime and torch, relative to the largest.

    Raises:
        UserError: It exceeds ``TOLERANCE``, or the logits are not finite in torch already.
    """
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    images = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))
    actual = torch.from_numpy(session.run(None, {'images': images.numpy()})[0])
    with torch.no_grad():
        expected = model(images)
    if not expected.isfinite().all():
        raise UserError(f'the logits are not finite in torch already, so that {path} cannot be '
                        'compared; untrained dynamic kernels may overflow, give a checkpoint')
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    if not error <= TOLERANCE:
        raise UserError(f'the logits of {path} differ by {error:.1e} for a batch of {batch} x '
                        f'{tuple(shape)}, more than {TOLERANCE}')
    return error


def main() -> None:
    args = parse_args()
    args.launcher, args.work_dir, args.local_rank = 'none', None, 0
    cfg = load_config(args)
    shape = tuple(args.shape) if args.shape else input_shape(cfg)
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise UserError('--shape takes channels and length, or channels, height and width, got '
                        f'{list(shape)}')
    model = build_classifier(cfg, args.checkpoint)
    out = args.out or f'{Path(args.config).stem}.onnx'
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    try:
        export(model, shape, out, args.dynamic_size, args.opset)
    except (RuntimeError, ValueError) as error:
        raise UserError(f'{args.config} cannot be exported for an input of {shape} to opset '
                        f'{args.opset}: {error}') from error
    print(f'{out}: images [batch, {", ".join(map(str, shape))}], {Path(out).stat().st_size >> 20} '
          'MiB')
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        print('not compared with torch: onnxruntime is not installed')
        return
    for batch in (1, 3):
        error = verify(model, out, shape, batch)
        print(f'batch {batch}: logits equal to {error:.1e} in onnxruntime')


if __name__ == '__main__':
    sys.exit(run(main))
