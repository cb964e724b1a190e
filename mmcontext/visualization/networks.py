"""Networks, images and features for the pictures."""
import os.path as osp
from contextlib import contextmanager
from typing import Dict, Iterator, NamedTuple, Optional, Sequence, Tuple, Type, Union

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmcontext.engine.flops import build_model
from mmcontext.utils.checkpoint import load_checkpoint_file
from mmcontext.utils.errors import CheckpointError, UserError
from mmcontext.utils.initialise import initialise
from mmcontext.zoo.index import get_config

_WEIGHTS = ('.pth', '.safetensors')


class Network(NamedTuple):
    """A network in eval mode, without gradients of its parameters."""
    label: str
    cfg: Config
    model: nn.Module

    @property
    def backbone(self) -> nn.Module:
        """Its backbone."""
        return self.model.backbone


def find_config(name: str) -> Config:
    """The config of a file, of a name of this zoo, or of a name of mmpretrain's.

    Raises:
        UserError: There is none.
    """
    if name.endswith('.py'):
        if not osp.isfile(name):
            raise UserError(f'config {name} does not exist')
        return Config.fromfile(name)
    try:
        return get_config(name)
    except ValueError as error:
        try:
            from mmpretrain.apis.model import ModelHub
            return ModelHub.get(name).config
        except (ImportError, ValueError):
            raise UserError(str(error)) from error


@torch.no_grad()
def settle(backbone: nn.Module, in_channels: int) -> None:
    """Make an untrained backbone fit to be looked at.

    Norms that start at zero, and would hide what stands before them, start at one; and all take
    the statistics of a batch of noise, without which products of features with kernels made of
    them grow from layer to layer until they overflow.
    """
    norms = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.
        if not norm.weight.any():
            nn.init.ones_(norm.weight)
    backbone.train()
    backbone(torch.randn(4, in_channels, 64, 64, generator=torch.Generator().manual_seed(0)))
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


def load_network(spec: str) -> Network:
    """Build a network and load its weights.

    Args:
        spec: ``CONFIG``, ``CONFIG=CHECKPOINT`` or ``CHECKPOINT``, where CONFIG is a file or a
            name of the zoo (of mmpretrain's, too), and a checkpoint of training holds its own
            config. Without weights the network is as initialised, and :func:`settle` is run.

    Raises:
        UserError: There is no such config, or the checkpoint does not fit.
    """
    name, _, weights = spec.partition('=')
    if name.endswith(_WEIGHTS):
        weights = name
        checkpoint = load_checkpoint_file(weights, map_location='cpu')
        text = checkpoint.get('meta', {}).get('cfg')
        if not text:
            raise UserError(f'checkpoint {name} holds no config: give CONFIG={name}')
        cfg = Config.fromstring(text, '.py')
        label = osp.basename(cfg.get('work_dir') or osp.splitext(name)[0])
    else:
        checkpoint = load_checkpoint_file(weights, map_location='cpu') if weights else None
        cfg = find_config(name)
        label = osp.splitext(osp.basename(name))[0]
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    model = build_model(cfg)
    if checkpoint is None:
        initialise(model)
        label += ', untrained'
        if (cfg.model.get('neck') or {}).get('dim', 2) == 2:
            settle(model.backbone, cfg.model.backbone.get('in_channels', 3))
    else:
        state = checkpoint.get('state_dict', checkpoint)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f'checkpoint {weights} does not fit {name}: '
                                  f'{" ".join(str(error).split())[:300]}') from error
    return Network(label, cfg, model.eval().requires_grad_(False))


def input_size(cfg: Config) -> int:
    """Side of the images in the test pipeline of a config; 224 where it names none."""
    for step in reversed(cfg.get('test_pipeline') or ()):
        size = step.get('crop_size', step.get('scale'))
        if size:
            return size if isinstance(size, int) else size[0]
    return 224


def read_image(path: str, size: int) -> np.ndarray:
    """An image as a square.

    Args:
        path: Image file.
        size: Side in pixels; the shorter side is scaled to it and the middle cut out.

    Returns:
        RGB from 0 to 255, uint8 [size, size, 3].

    Raises:
        UserError: There is no image.
    """
    image = mmcv.imread(path, channel_order='rgb') if osp.isfile(path) else None
    if image is None:
        raise UserError(f'image {path} does not exist or is no image')
    height, width = image.shape[:2]
    scale = size / min(height, width)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    image = mmcv.imresize(image, (width, height),
                          interpolation='bicubic' if scale > 1 else 'area')
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top:top + size, left:left + size]


def to_input(network: Network, images: Union[np.ndarray, Sequence[np.ndarray]]) -> Tensor:
    """RGB images as a network expects them: channel order, mean and deviation of its config.

    Args:
        network: The network.
        images: [H, W, 3], or several.

    Returns:
        Float [B, 3, H, W].
    """
    cfg = network.cfg.model.get('data_preprocessor') or {}
    batch = np.asarray(images, dtype=np.float32)
    batch = batch if batch.ndim == 4 else batch[None]
    if not (cfg.get('to_rgb') or cfg.get('bgr_to_rgb')):
        batch = batch[..., ::-1]
    mean = np.asarray(cfg.get('mean') or [0.] * 3, dtype=np.float32)
    std = np.asarray(cfg.get('std') or [1.] * 3, dtype=np.float32)
    return torch.from_numpy(((batch - mean) / std).transpose(0, 3, 1, 2).copy())


def logits(network: Network, x: Tensor) -> Tensor:
    """Logits [B, classes] of a classifier."""
    with DefaultScope.overwrite_default_scope(network.cfg.get('default_scope', 'mmengine')):
        return network.model(x, mode='tensor')


def layers_of(model: nn.Module, kinds: Union[Type, Tuple[Type, ...]]) -> Dict[str, nn.Module]:
    """The layers of some types by name, the names without ``backbone.``."""
    return {name.replace('backbone.', '', 1): module for name, module in model.named_modules()
            if isinstance(module, kinds)}


def pick_layer(model: nn.Module, kinds: Union[Type, Tuple[Type, ...]],
               name: Optional[str] = None) -> Tuple[str, nn.Module]:
    """A layer by name, or the one in the middle of the network.

    Raises:
        UserError: The network has none of that kind, or none of that name.
    """
    found = layers_of(model, kinds)
    if not found:
        wanted = kinds if isinstance(kinds, tuple) else (kinds, )
        raise UserError('the network has no layer of type '
                        + ' or '.join(kind.__name__ for kind in wanted))
    if name is None:
        name = list(found)[len(found) // 2]
    if name not in found:
        raise UserError(f'the network has no layer {name!r} of the wanted kind; it has '
                        + ', '.join(found))
    return name, found[name]


@contextmanager
def recorded_inputs(*layers: nn.Module) -> Iterator[Dict[nn.Module, Tensor]]:
    """Keep what goes into some layers while the network runs."""
    inputs = {}
    handles = [layer.register_forward_pre_hook(
        lambda module, args: inputs.__setitem__(module, args[0].detach())) for layer in layers]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()
