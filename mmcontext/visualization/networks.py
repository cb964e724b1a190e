"""Networks, images and features for the figures."""
import os.path as osp
from contextlib import contextmanager
from typing import Dict, Iterator, NamedTuple, Optional, Sequence, Tuple, Type, Union

import cv2
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
    """A network in eval mode, without gradients of its parameters.

    Attributes:
        label (str): Its name in the figures.
        cfg (Config): Its config.
        model (nn.Module): The whole model.
        trained (bool): Whether weights were loaded.
    """
    label: str
    cfg: Config
    model: nn.Module
    trained: bool = True

    @property
    def backbone(self) -> nn.Module:
        """Its backbone."""
        return self.model.backbone


def find_config(name: str) -> Config:
    """The config of a file, a name of this zoo, or a name of mmpretrain's zoo.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    if name.endswith('.py'):
        if not osp.isfile(name):
            raise UserError(f'config {name} does not exist')
        try:
            return Config.fromfile(name)
        except (ImportError, SyntaxError, OSError, ValueError) as error:
            raise UserError(f'config {name} cannot be read: {error}') from error
    try:
        return get_config(name)
    except ImportError as error:
        raise UserError(str(error)) from error
    except ValueError as error:
        try:
            from mmpretrain.apis.model import ModelHub
            return ModelHub.get(name).config
        except (ImportError, ValueError):
            raise UserError(str(error)) from error


@torch.no_grad()
def settle(backbone: nn.Module, x: Tensor) -> None:
    """Prepare an untrained backbone for visualisation.

    Norms initialised to zero, which would hide the layers before them, are set to one; and all
    take the statistics of the given images. With other statistics, products of features with
    kernels computed from them grow or shrink from layer to layer until they overflow or vanish.

    Args:
        backbone: In eval mode.
        x: The images, [B, C, H, W].
    """
    def take(norm: nn.Module, args: Tuple[Tensor]) -> None:
        values = args[0].transpose(0, 1).flatten(1)
        if values.shape[1] > 1:
            norm.running_mean.copy_(values.mean(1))
            norm.running_var.copy_(values.var(1, unbiased=False))

    norms = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        if not norm.weight.any():
            nn.init.ones_(norm.weight)
    handles = [norm.register_forward_pre_hook(take) for norm in norms]
    try:
        backbone(x)
    finally:
        for handle in handles:
            handle.remove()


def load_network(spec: str) -> Network:
    """Build a network and load its weights.

    Args:
        spec: ``CONFIG``, ``CONFIG=CHECKPOINT`` or ``CHECKPOINT``, where CONFIG is a file or a
            name of this zoo or mmpretrain's, and a training checkpoint contains its own config.
            Without weights the network is as initialised, see :func:`settle`.

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
    if 'backbone' not in cfg.get('model', {}):
        raise UserError(f'{name} is not the config of a network with a backbone')
    if 'Pretrained' in str(cfg.model.backbone.get('init_cfg')):
        # The weights from which the training of a detector starts are not loaded.
        cfg.model.backbone.init_cfg = None
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    if checkpoint is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same figure every time
            model = initialise(build_model(cfg))
        label += ', untrained'
    else:
        model = build_model(cfg)
        state = checkpoint.get('state_dict', checkpoint)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f'checkpoint {weights} does not fit {name}: '
                                  f'{" ".join(str(error).split())[:300]}') from error
    return Network(label, cfg, model.eval().requires_grad_(False), checkpoint is not None)


def input_size(cfg: Config) -> int:
    """Shorter side of the images in the test pipeline of a config; 224 if it specifies none."""
    for step in reversed(cfg.get('test_pipeline') or ()):
        size = step.get('crop_size', step.get('scale'))
        if size:
            return size if isinstance(size, int) else min(size)
    return 224


def read_image(path: str, size: int) -> np.ndarray:
    """An image as a square.

    Args:
        path: Image file.
        size: Side in pixels; the shorter side is scaled to it and the centre is cropped.

    Returns:
        RGB from 0 to 255, uint8 [size, size, 3].

    Raises:
        UserError: There is no image.
    """
    if not osp.isfile(path):
        raise UserError(f'image {path} does not exist')
    try:
        image = mmcv.imread(path, channel_order='rgb')
    except cv2.error:  # of an empty image, which is what it reads from a damaged file
        image = None
    if image is None:
        raise UserError(f'image {path} is damaged or of an unknown kind '
                        f'({osp.getsize(path)} bytes)')
    height, width = image.shape[:2]
    scale = size / min(height, width)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    image = mmcv.imresize(image, (width, height),
                          interpolation='bicubic' if scale > 1 else 'area')
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top:top + size, left:left + size]


def channels_of(network: Network) -> int:
    """Channels of a network's images: 3, or 1 for greyscale.

    Raises:
        UserError: The network is not one for images.
    """
    channels = network.cfg.model.backbone.get('in_channels', 3)
    dim = (network.cfg.model.get('neck') or {}).get('dim', 2)
    if channels not in (1, 3) or dim != 2:
        raise UserError(f'{network.label} does not take images, but inputs of {channels} channels '
                        f'and {dim} dimensions')
    return channels


def to_input(network: Network, images: Union[np.ndarray, Sequence[np.ndarray]]) -> Tensor:
    """RGB images as inputs of a network: channel order, mean and standard deviation of its config.

    Args:
        network: The network.
        images: [H, W, 3], or several.

    Returns:
        Float [B, 3, H, W]; for greyscale networks [B, 1, H, W], the mean of the colours.

    Raises:
        UserError: The network is not one for images.
    """
    cfg = network.cfg.model.get('data_preprocessor') or {}
    channels = channels_of(network)
    batch = np.asarray(images, dtype=np.float32)
    batch = batch if batch.ndim == 4 else batch[None]
    if channels == 1:
        batch = batch.mean(-1, keepdims=True)
    elif not (cfg.get('to_rgb') or cfg.get('bgr_to_rgb')):
        batch = batch[..., ::-1]
    mean = np.asarray(cfg.get('mean') or [0.] * channels, dtype=np.float32)
    std = np.asarray(cfg.get('std') or [1.] * channels, dtype=np.float32)
    return torch.from_numpy(((batch - mean) / std).transpose(0, 3, 1, 2).copy())


def logits(network: Network, x: Tensor) -> Tensor:
    """Logits [B, classes] of a classifier."""
    with DefaultScope.overwrite_default_scope(network.cfg.get('default_scope', 'mmengine')):
        return network.model(x, mode='tensor')


def layers_of(model: nn.Module, kinds: Union[Type, Tuple[Type, ...]]) -> Dict[str, nn.Module]:
    """The layers of some types by name, without ``backbone.`` in the names."""
    return {name.replace('backbone.', '', 1): module for name, module in model.named_modules()
            if isinstance(module, kinds)}


def pick_layer(model: nn.Module, kinds: Union[Type, Tuple[Type, ...]],
               name: Optional[str] = None) -> Tuple[str, nn.Module]:
    """A layer by name, or the one in the middle of the network.

    Raises:
        UserError: The network has none of these types, or none with that name.
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
    """Record the inputs of some layers while the network runs."""
    inputs = {}
    handles = [layer.register_forward_pre_hook(
        lambda module, args: inputs.__setitem__(module, args[0].detach())) for layer in layers]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()
