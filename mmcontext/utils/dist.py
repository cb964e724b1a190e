"""Several processes, mainly on a machine without an accelerator."""
import ctypes
import datetime
import gc
import os
import signal
import subprocess
import sys

import torch.distributed as dist
from torch import nn


def on_cpu() -> bool:
    """Whether mmengine finds no accelerator (CUDA, NPU, MLU, MPS, MUSA) here."""
    from mmengine.device import get_device
    return get_device() == 'cpu'


def unwrapped_model(runner) -> nn.Module:
    """The model of a runner without the wrapper for several processes.

    Args:
        runner (Runner): mmengine's or a subclass.
    """
    from mmengine.model import is_model_wrapper
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def init_cpu_process_group(launcher: str, timeout: float = 1800) -> None:
    """Start a gloo process group, which mmengine refuses to do without a GPU.

    Args:
        launcher (str): 'pytorch', 'slurm' or 'mpi', as in mmengine.
        timeout (float): seconds to wait for the other processes. Defaults to 1800.
    """
    env = os.environ
    if launcher == 'slurm':
        env['RANK'] = env['SLURM_PROCID']
        env['WORLD_SIZE'] = env['SLURM_NTASKS']
        env['LOCAL_RANK'] = env.get('SLURM_LOCALID', '0')
        if 'MASTER_ADDR' not in env:
            hosts = subprocess.run(['scontrol', 'show', 'hostnames', env['SLURM_NODELIST']],
                                   capture_output=True, text=True, check=True).stdout
            env['MASTER_ADDR'] = hosts.split()[0]
    elif launcher == 'mpi':
        env['RANK'] = env['OMPI_COMM_WORLD_RANK']
        env['WORLD_SIZE'] = env['OMPI_COMM_WORLD_SIZE']
        env['LOCAL_RANK'] = env['OMPI_COMM_WORLD_LOCAL_RANK']
    elif launcher != 'pytorch':
        raise ValueError(f"launcher must be 'pytorch', 'slurm' or 'mpi', got {launcher!r}")
    env.setdefault('MASTER_PORT', '29500')
    dist.init_process_group('gloo', timeout=datetime.timedelta(seconds=timeout))


def die_with_launcher() -> None:
    """End this process when the launcher that started it is gone (Linux).

    Otherwise the processes of a launcher killed with -9 would continue training, and write into
    the folder of the resumed run.
    """
    if 'TORCHELASTIC_RUN_ID' not in os.environ or not sys.platform.startswith('linux'):
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def leave_process_group() -> None:
    """Leave the process group, if there is one.

    Gloo's threads may still hold tensors of the last collective. If they live until the
    interpreter exits they sometimes kill the process there ("terminate called without an active
    exception"), after all its work is done. They are joined once the group is not referenced.
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
