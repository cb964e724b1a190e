"""NVRTC's code for the tiled CUDA kernels: no spills, and vectors along the contiguous axis."""
import importlib.util
from pathlib import Path

import pytest
import torch

_PATH = Path(__file__).parents[2] / 'tools/benchmarks/inspect_kernels.py'
_SPEC = importlib.util.spec_from_file_location('inspect_kernels', _PATH)
inspect_kernels = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(inspect_kernels)

pytestmark = pytest.mark.skipif(inspect_kernels.find_nvrtc() is None,
                                reason='no NVRTC beside this torch (a build without CUDA)')
SHAPES = {'': (8, 64, 56, 56, 7, 1, 16, False)}


@pytest.fixture(scope='module')
def tools(tmp_path_factory):
    return (inspect_kernels.Emulator(tmp_path_factory.mktemp('planner')),
            inspect_kernels.Nvrtc(inspect_kernels.find_nvrtc()))


@pytest.mark.parametrize('dtype, last', [(torch.float32, False), (torch.bfloat16, True)])
@pytest.mark.parametrize('task', range(3), ids=inspect_kernels.TASKS)
def test_no_spills_and_vectors_only(tools, task, dtype, last):
    emulator, nvrtc = tools
    *_, problem = list(inspect_kernels.problems([(dtype, last)], SHAPES))[task]
    (launch,) = emulator.plan(*problem)
    assert launch.source == 'local_aggregation.cu'
    code = inspect_kernels.inspect(nvrtc, launch.source, launch.defines, 'sm_90', None)
    assert code.spilled == 0
    assert code.registers <= 128
    # Four columns or 16 bytes of channels at a time.
    least = 4 * torch.finfo(dtype).bits // 8
    widths = {name: int(name.split()[1]) for name in code.instructions
              if name.startswith(('ld.global', 'st.global', 'cp.async'))}
    assert {name.split()[0] for name in widths} >= {'st.global'}
    assert min(widths.values()) >= least, widths


def test_counting_tells_widths_apart():
    ptx = """
        ld.global.nc.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1];
        ld.global.nc.u16 %rs1, [%rd1];
        st.global.v2.f32 [%rd2], {%f1, %f2};
        cp.async.cg.shared.global [%r5], [%rd3], 16, %r6;
        cp.async.ca.shared.global [%r5], [%rd3], 4, %r6;
        ld.shared.v4.u32 {%r1, %r2, %r3, %r4}, [%r7];
    """
    assert inspect_kernels.count_ptx(ptx) == {
        'ld.global 16': 1, 'ld.global 2': 1, 'st.global 8': 1, 'cp.async 16': 1, 'cp.async 4': 1,
        'ld.shared 16': 1}
    sass = """
.L_x_0:
        /*0010*/                   LDS.128 R4, [R2] ;
        /*0020*/                   FFMA R1, R2, R3, R1 ;
        /*0030*/                   @!P0 BRA `(.L_x_0) ;
        /*0040*/              @P1  LDG.E.U16.CONSTANT R4, desc[UR4][R2.64] ;
        /*0050*/                   STG.E desc[UR4][R2.64], R4 ;
    """
    whole, inner = inspect_kernels.count_sass(sass)
    assert inner == {'LDS 16': 1, 'FFMA': 1, 'BRA': 1}
    assert (whole['LDG 2'], whole['STG 4']) == (1, 1)
