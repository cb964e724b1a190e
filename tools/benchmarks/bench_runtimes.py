"""Time exported networks in several runtimes against eager torch, in one process.

Every network runs in eager torch with the kernels of this package, in onnxruntime and, if it is
installed, in openvino, both from the same ONNX file; also in onnxruntime with this package's
operator and, with ``--aoti``, as an ahead-of-time compiled package of torch. They alternate, round
after round; ratios to eager ResNet-50 are between the fastest rounds. With one thread, processor
time is measured, so that other work on the machine does not count.

    python tools/benchmarks/bench_runtimes.py --networks CedNet-50 RedNet-50 --batch 1
"""
import argparse
import json
import os
import tempfile
import time
from typing import Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np
import onnxruntime
import torch
from bench_models import BASELINE, NETWORKS, Classifier, machine
from mmengine.registry import init_default_scope

from mmcontext.deployment.graph import Graph, export
from mmcontext.deployment.onnxruntime_library import write_library
from mmcontext.ops import standard_operators

Step = Callable[[], np.ndarray]


def eager(model: torch.nn.Module, images: torch.Tensor) -> Step:
    """The network in eager torch."""
    def step() -> np.ndarray:
        with torch.inference_mode():
            return model(images).numpy()
    return step


def in_onnxruntime(path: str, images: torch.Tensor, library: Optional[str] = None) -> Step:
    """An ONNX file in onnxruntime, with as many threads as torch."""
    options = onnxruntime.SessionOptions()
    if library:
        options.register_custom_ops_library(library)
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed)[0]


def in_openvino(path: str, images: torch.Tensor) -> Step:
    """An ONNX file in openvino, in float32 and with as many threads as torch."""
    import openvino
    compiled = openvino.Core().compile_model(path, 'CPU', dict(
        INFERENCE_NUM_THREADS=torch.get_num_threads(), INFERENCE_PRECISION_HINT='f32',
        PERFORMANCE_HINT='LATENCY'))
    request = compiled.create_infer_request()
    return lambda: request.infer([images.numpy()])[0]


def ahead_of_time(model: torch.nn.Module, images: torch.Tensor, path: str) -> Step:
    """A package of torch.export and AOTInductor, only for images of this shape."""
    from torch._inductor import aoti_compile_and_package, aoti_load_package
    with torch.no_grad(), standard_operators():
        program = torch.export.export(model, (images, ))
        package = aoti_load_package(aoti_compile_and_package(program, package_path=path))

    def step() -> np.ndarray:
        with torch.inference_mode():
            return package(images).numpy()
    return step


def runtimes(name: str, images: torch.Tensor, folder: str, aoti: bool
             ) -> Iterator[Tuple[str, Step]]:
    """A network in every available runtime, each checked against eager torch."""
    torch.manual_seed(0)
    model = Classifier(NETWORKS[name]).eval()
    step = eager(model, images)
    expected = step()
    yield 'eager', step
    graph = Graph(model, (images[:1].repeat(2, 1, 1, 1), ), {'images': {0: 'batch'}},
                  {'logits': {0: 'batch'}}, dict(config=name), model)
    path = os.path.join(folder, f'{name}.onnx')
    export(graph, path)
    steps = {'onnxruntime': in_onnxruntime(path, images)}
    own = os.path.join(folder, f'{name}_own.onnx')
    export(graph, own, own_operators=True)
    steps['onnxruntime, own operator'] = in_onnxruntime(own, images, str(write_library(folder)))
    try:
        steps['openvino'] = in_openvino(path, images)
    except ImportError:
        print('openvino is not installed')
    if aoti:
        start = time.perf_counter()
        steps['AOTInductor'] = ahead_of_time(model, images, os.path.join(folder, f'{name}.pt2'))
        print(f'{name}: compiled in {time.perf_counter() - start:.0f} s')
    for runtime, step in steps.items():
        difference = np.abs(step() - expected).max() / np.abs(expected).max()
        if not difference < 1e-3:
            raise SystemExit(f'{name} in {runtime} differs by {difference:.1e}')
        yield runtime, step


def fastest(steps: Dict[Tuple[str, str], Step], rounds: int) -> Dict[Tuple[str, str], float]:
    """Seconds of the fastest of several interleaved rounds, after one warm-up round."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: Dict[Tuple[str, str], List[float]] = {key: [] for key in steps}
    for index in range(rounds + 1):
        for key, step in steps.items():
            start = clock()
            step()
            if index:
                times[key].append(clock() - start)
    return {key: min(values) for key, values in times.items()}


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', nargs='+', default=['CedNet-50', 'RedNet-50'],
                        choices=sorted(set(NETWORKS) - {BASELINE}), metavar='NAME')
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=10)
    parser.add_argument('--aoti', nargs='*', default=[], metavar='NAME',
                        help='networks to compile ahead of time too (minutes each)')
    args = parser.parse_args()
    init_default_scope('mmpretrain')
    print(json.dumps(dict(**machine(), onnxruntime=onnxruntime.__version__, batch=args.batch)))
    images = torch.randn(args.batch, 3, args.size, args.size)
    with tempfile.TemporaryDirectory() as folder:
        steps = {(name, runtime): step for name in [BASELINE, *args.networks]
                 for runtime, step in runtimes(name, images, folder, name in args.aoti)}
        times = fastest(steps, args.rounds)
    print('| network | runtime | ms | to eager ResNet-50 |\n|---|---|---|---|')
    for (name, runtime), seconds in times.items():
        print(f'| {name} | {runtime} | {1e3 * seconds:.1f} '
              f'| {seconds / times[BASELINE, "eager"]:.2f} |')


if __name__ == '__main__':
    main()
