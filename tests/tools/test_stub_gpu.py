"""Training steps on the code paths for a GPU, on a runtime of stubs."""
import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from common import ROOT

from mmcontext.ops.native_library import UNAVAILABLE

_SCRIPT = ROOT / 'tools/benchmarks/bench_launches.py'
_SPEC = importlib.util.spec_from_file_location('bench_launches', _SCRIPT)
bench_launches = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(bench_launches)
# Another torch may call functions that the stubs do not have.
REFUSAL = UNAVAILABLE or bench_launches.refusal() or (
    '' if torch.__version__.startswith('2.11.') else 'the stubs have been tried with torch 2.11')
pytestmark = pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL)


def test_launches_of_training_steps(tmp_path):
    out = tmp_path / 'rows.json'
    names = ['ResNet-50', 'CedNet-50', 'CoTNet-50']
    done = subprocess.run([sys.executable, str(_SCRIPT), '--rounds', '1', '--out', str(out),
                           '--networks', *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())
    assert list(rows) == names and names[2] in done.stdout
    # 53 convolutions: forward and two gradients, of the first only that of the weight.
    assert rows['ResNet-50']['cudnn'] == 158 and rows['ResNet-50']['own'] == 0
    # Our kernels run, and no small passes around them have come back.
    for name, most in (('CedNet-50', 1.55), ('CoTNet-50', 2.4)):
        assert rows[name]['own'] > 400
        assert rows[name]['launches'] < most * rows['ResNet-50']['launches']


GRAPHED = '''
import sys, warnings
sys.path.insert(0, sys.argv[1])
import torch
from bench_host import narrow
from gpu.networks import training_step
from mmengine.registry import init_default_scope
from mmcontext.engine.hooks.cuda_graph_hook import GraphedForward
from mmcontext.ops import gpu_kernels

# Nodes that stay on the stream of a capture are one.
warnings.filterwarnings('error', message='.*AccumulateGrad')
gpu_kernels.compile_kernel = lambda *_: b'never executed'
init_default_scope('mmpretrain')
model = narrow('CedNet-50')
step = training_step(model, 'cuda', 2, 64, 'bfloat16', 'nhwc')
model.backbone.forward = graphs = GraphedForward(model.backbone, most=1, warmup=2)
for _ in range(4):
    step()
assert len(graphs._graphs) == 1
'''


def test_training_with_graphs(tmp_path):
    done = subprocess.run(
        [sys.executable, '-c', GRAPHED, str(_SCRIPT.parent)], capture_output=True, text=True,
        env=dict(os.environ, LD_PRELOAD=str(bench_launches.build(tmp_path)), OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stderr
