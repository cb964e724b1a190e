"""Start the processes of dist_train.sh and dist_test.sh: torch.distributed.run, made quieter.

Takes torch.distributed.run's command line. In addition, it picks a free port for
``--master-port 0``, divides the cores among the processes of a machine without a GPU, and
suppresses the launcher's own traceback when a process has already reported what is wrong.
"""
import logging
import os
import signal
import socket
import sys

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser, run


def free_port() -> int:
    """A TCP port that is currently free."""
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


def threads_per_process(processes: int) -> int:
    """Number of this machine's cores that each process may use, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') \
        else os.cpu_count() or 1
    return max(1, cores // max(1, processes))


def main() -> int:
    """Command line entry point; returns the exit status."""
    logging.getLogger('torch.distributed.elastic').setLevel(logging.CRITICAL)
    args = get_args_parser().parse_args()
    if args.master_port == 0:
        args.master_port = free_port()
    if not torch.cuda.is_available() and args.nproc_per_node.isdigit():
        os.environ.setdefault('OMP_NUM_THREADS', str(threads_per_process(int(args.nproc_per_node))))
    try:
        run(args)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        how = f'was ended by {signal.Signals(-code).name}' if code < 0 else \
            f'ended with status {code}; its message is above'
        print(f'launch.py: process {rank} {how}', file=sys.stderr)
        return 1
    except SignalException as error:
        print(f'launch.py: stopped by {error.sigval.name}', file=sys.stderr)
        return 128 + error.sigval
    return 0


if __name__ == '__main__':
    sys.exit(main())
