"""Time whole networks against a stock ResNet-50 of mmpretrain, in one process.

Inference at batch 1 and training steps (forward, loss, backward, SGD step) at batch 8 are
interleaved, network after network and round after round, so that noise on the machine affects all
of them; ratios to ResNet-50 are taken within a round.

    python tools/benchmarks/bench_models.py --networks CedNet-50 RedNet-50 --out models.json
"""
import argparse
import json
import platform
import time
from typing import Callable, Dict, List

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.registry import init_default_scope
from torch import nn

BASELINE = 'ResNet-50'
NETWORKS = {
    'ResNet-50': dict(type='mmpretrain.ResNet', depth=50),
    'CedNet-50': dict(type='mmcontext.CedNet', depth=50),
    'RedNet-50': dict(type='mmcontext.RedNet', depth=50),
    'CoTNet-50': dict(type='mmcontext.CoTNet', depth=50),
    'CoResNet-50': dict(type='mmcontext.CoResNet', depth=50),
    'PyConvResNet-50': dict(type='mmcontext.PyConvResNet', depth=50),
    'PyConvHGResNet-50': dict(type='mmcontext.PyConvHGResNet', depth=50),
    'SE-CoTNetD-50': dict(type='mmcontext.SECoTNetD', depth=50),
    'CoTNeXt-50': dict(type='mmcontext.CoTNeXt', depth=50),
    'CKResNet-50': dict(type='mmcontext.CKResNet', depth=50),
}


class Classifier(nn.Module):
    """A backbone with mean pooling and a linear layer to 1000 classes.

    Args:
        cfg: Config of the backbone.
        channels: Channels of its output. Defaults to 2048.
    """

    def __init__(self, cfg: dict, channels: int = 2048) -> None:
        super().__init__()
        from mmpretrain.registry import MODELS
        self.backbone = MODELS.build(cfg)
        self.fc = nn.Linear(channels, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.backbone(x)[-1].mean(dim=(2, 3)))


def inference(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        model.eval()
        with torch.inference_mode():
            model(images)
    return step


def training(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return step


def run_in_turn(steps: Dict[str, Callable[[], None]], rounds: int) -> Dict[str, List[float]]:
    """Seconds of every step in every round, after one warm-up round."""
    times = {name: [] for name in steps}
    for index in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if index:
                times[name].append(time.perf_counter() - start)
    return times


def summary(times: Dict[str, List[float]], baseline: str) -> Dict[str, dict]:
    rows = {}
    for name, values in times.items():
        low, median, high = np.quantile(values, (0.2, 0.5, 0.8))
        ratio = np.divide(values, times[baseline])
        rows[name] = dict(ms=[round(1e3 * v, 2) for v in (low, median, high)],
                          ratio=[round(v, 3) for v in np.quantile(ratio, (0.2, 0.5, 0.8))])
    return rows


def show(title: str, rows: Dict[str, dict], baseline: str) -> None:
    print(f'\n{title}: ms (20 %, median, 80 %) and quotient to {baseline}')
    for name, row in rows.items():
        print(f'  {name:34}' + ' '.join(f'{v:9.2f}' for v in row['ms']) + '   ' +
              ' '.join(f'{v:6.3f}' for v in row['ratio']))


def machine() -> dict:
    from mmcontext.ops.native_library import instruction_sets
    return dict(processor=platform.processor() or platform.machine(),
                capability=torch.backends.cpu.get_cpu_capability(),
                kernels=instruction_sets(), threads=torch.get_num_threads(),
                torch=torch.__version__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', nargs='+', default=['CedNet-50', 'RedNet-50', 'CoTNet-50'],
                        choices=sorted(set(NETWORKS) - {BASELINE}), metavar='NAME')
    parser.add_argument('--layouts', nargs='+', default=['nchw', 'nhwc'],
                        choices=['nchw', 'nhwc'])
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--train-batch', type=int, default=8)
    parser.add_argument('--rounds', type=int, default=20, help='of inference')
    parser.add_argument('--train-rounds', type=int, default=5, help='0 leaves training out')
    parser.add_argument('--out', help='JSON file')
    args = parser.parse_args()
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    print(json.dumps(machine()))
    image = torch.randn(1, 3, args.size, args.size)
    batch = torch.randn(args.train_batch, 3, args.size, args.size)
    labels = torch.randint(0, 1000, (args.train_batch, ))
    formats = dict(nchw=torch.contiguous_format, nhwc=torch.channels_last)
    infer, train = {}, {}
    for layout in args.layouts:
        for name in [BASELINE, *args.networks]:
            model = Classifier(NETWORKS[name]).to(memory_format=formats[layout])
            key = f'{name} {layout}'
            infer[key] = inference(model, image.contiguous(memory_format=formats[layout]))
            train[key] = training(model, batch.contiguous(memory_format=formats[layout]), labels)
    baseline = f'{BASELINE} {args.layouts[0]}'
    result = dict(machine=machine())
    result['inference'] = summary(run_in_turn(infer, args.rounds), baseline)
    show(f'inference, batch 1, {args.size}x{args.size}', result['inference'], baseline)
    if args.train_rounds:
        result['training'] = summary(run_in_turn(train, args.train_rounds), baseline)
        show(f'training step, batch {args.train_batch}, {args.size}x{args.size}',
             result['training'], baseline)
    if args.out:
        with open(args.out, 'w') as file:
            json.dump(result, file, indent=1)


if __name__ == '__main__':
    main()
