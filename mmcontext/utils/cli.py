"""Code shared by tools/train.py and tools/test.py."""
import argparse
import difflib
import errno
import os
import os.path as osp
import signal
import sys
import time
from glob import glob
from typing import Callable

from mmengine.config import Config, DictAction

from .checkpoint import enforce_weights_only
from .dist import die_with_launcher, leave_process_group
from .errors import UserError, required

# default_scope -> name on PyPI, for the libraries that the configs of this package build on.
_SCOPE_PACKAGES = {
    'mmpretrain': 'mmpretrain',
    'mmdet': 'mmdet',
    'mmseg': 'mmsegmentation',
}

# Prefix of this package's configs in a `_base_`; their folder is in a clone or a wheel.
_OWN = 'mmcontext::'
_CONFIGS = osp.join(osp.dirname(osp.dirname(osp.abspath(__file__))), '.mim', 'configs')

# The place to write to is full, read-only or forbidden: the system's message says so.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM,
                errno.ENOTDIR, errno.EEXIST)


class _KeyValues(DictAction):
    """mmengine's KEY=VALUE arguments; one without = is a usage error."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        try:
            super().__call__(parser, namespace, values, option_string)
        except ValueError:
            parser.error(f'{option_string} takes KEY=VALUE, got {" ".join(values)!r}')


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``."""
    parser.add_argument(
        '--cfg-options', nargs='+', action=_KeyValues, metavar='KEY=VALUE',
        help='override settings of the config, e.g. train_dataloader.batch_size=8 '
        'key="[a,b]"; no white space around =')


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing share in all mm libraries."""
    parser.add_argument(
        '--work-dir', help='folder for logs and checkpoints (default: ./work_dirs/CONFIG_NAME)')
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
        help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def load_config(args: argparse.Namespace) -> Config:
    """Read the config named on the command line and merge the common options into it.

    Raises:
        UserError: the config is missing, cannot be read, or needs a library that is not
            installed, or an option does not fit it.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if args.config.startswith(_OWN):
        args.config = osp.join(_CONFIGS, args.config[len(_OWN):])
    if not osp.isfile(args.config):
        raise UserError(_unknown_config(args.config))
    try:
        cfg = Config.fromfile(args.config)
    except (ImportError, SyntaxError, OSError, ValueError) as error:
        # Also `_base_ = 'mmdet::...'` without mmdet, and a `_base_` that does not exist.
        cure = ('; mmengine needs it, from: pip install "setuptools<82"'
                if getattr(error, 'name', None) == 'pkg_resources' else '')
        raise UserError(f'config {args.config} cannot be read: {error}{cure}') from error
    try:
        cfg.merge_from_dict(args.cfg_options or {})
    except (LookupError, TypeError) as error:
        raise UserError(f'--cfg-options do not fit {args.config}: {error}') from error
    if 'model' not in cfg:
        raise UserError(f'{args.config} has no model: it is not the config of a network')
    _require_scope(cfg, args.config)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('./work_dirs', osp.splitext(osp.basename(args.config))[0])
    return cfg


def _unknown_config(path: str) -> str:
    # As a path in a clone, as a name of the package elsewhere.
    known = glob('configs/*/*.py') or [
        _OWN + osp.relpath(name, _CONFIGS).replace(osp.sep, '/')
        for name in glob(osp.join(_CONFIGS, '*', '*.py'))]
    by_name = {osp.basename(name): name for name in known}
    near = difflib.get_close_matches(osp.basename(path), by_name, n=1, cutoff=0.7)
    hint = f'; did you mean {by_name[near[0]]}?' if near else ''
    return f'config {path} does not exist{hint}'


def _require_scope(cfg: Config, path: str) -> None:
    scope = cfg.get('default_scope')
    if scope not in _SCOPE_PACKAGES:
        return
    required(scope, f'config {path}, whose default_scope is {scope}, needs',
             _SCOPE_PACKAGES[scope])


def run(main: Callable[[], None]) -> int:
    """Run a tool; mistakes by the user and disk errors are reported in one sentence.

    Args:
        main (callable): the tool's work.

    Returns:
        int: exit status.
    """
    die_with_launcher()
    enforce_weights_only()
    try:
        main()
    except KeyboardInterrupt:
        print(f'{osp.basename(sys.argv[0])}: interrupted', file=sys.stderr, flush=True)
        return 128 + signal.SIGINT
    except Exception as error:
        if int(os.environ.get('RANK', 0)) > 0:
            # The first process to end makes the launcher stop the others: this should be the
            # one that reports the error.
            time.sleep(10)
        message = str(error)
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            message = f'{error.strerror}: {error.filename or "a file of the work dir"}'
        elif not isinstance(error, UserError):
            raise
        print(f'{osp.basename(sys.argv[0])}: error: {message}', file=sys.stderr, flush=True)
        return 1
    # (Not after an exception: the other processes may still be waiting in a collective.)
    leave_process_group()
    return 0
