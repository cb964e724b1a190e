"""The runner of tools/train.py and tools/test.py."""
from typing import Dict, Optional, Union

import torch.nn as nn
from mmengine.config import Config
from mmengine.dist import is_distributed
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmcontext.utils.checkpoint import find_resumable_checkpoint
from mmcontext.utils.data import check_dataset, explain
from mmcontext.utils.dist import init_cpu_process_group, on_cpu


class ContextRunner(Runner):
    """mmengine's Runner with three additions.

    - Without an accelerator several processes train over gloo; mmengine alone would ask for
      CUDA devices.
    - ``resume=True`` takes the newest checkpoint that can be loaded, also where the last one
      was cut short.
    - A missing or empty data folder is one sentence (``DataError``).
    """

    def setup_env(self, env_cfg: Dict) -> None:
        """Set up processes; over gloo where there is no accelerator."""
        if on_cpu() and self.distributed and not is_distributed():
            timeout = env_cfg.get('dist_cfg', {}).get('timeout') or 1800
            init_cpu_process_group(self.launcher, timeout)
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: Optional[Dict], model: nn.Module) -> nn.Module:
        """Wrap the model for several processes; on CPU without device ids and SyncBN."""
        if not (on_cpu() and self.distributed):
            return super().wrap_model(model_wrapper_cfg, model)
        self.logger.info(
            f'No accelerator found: running {self.world_size} CPU processes over gloo, '
            'SyncBN as BN.')
        model = revert_sync_batchnorm(model)
        self.cfg.pop('sync_bn', None)
        if model_wrapper_cfg is None:
            model_wrapper_cfg = dict(
                broadcast_buffers=False,
                find_unused_parameters=self.cfg.get('find_unused_parameters', False))
        return super().wrap_model({**model_wrapper_cfg, 'device_ids': None}, model)

    def load_or_resume(self) -> None:
        """Load or resume, from the newest whole checkpoint where none is named."""
        if not self._has_loaded and self._resume and self._load_from is None:
            self._load_from = find_resumable_checkpoint(self.work_dir, self.logger)
            if self._load_from is None:
                self._resume = False
                self.logger.info(
                    f'No checkpoint to resume from in {self.work_dir}: training starts anew.')
        super().load_or_resume()

    @staticmethod
    def build_dataloader(dataloader: Union[DataLoader, Dict], *args, **kwargs) -> DataLoader:
        """Build a dataloader and see to it that there is data behind it."""
        if isinstance(dataloader, DataLoader):
            return dataloader
        try:
            built = Runner.build_dataloader(dataloader, *args, **kwargs)
        except Exception as error:
            problem = explain(dataloader['dataset'], error)
            if problem is None:
                raise
            raise problem from error
        check_dataset(built.dataset)
        return built


def make_runner(cfg: Config) -> Runner:
    """Build the runner of a config: its own ``runner_type``, else :class:`ContextRunner`."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else ContextRunner.from_cfg(cfg)
