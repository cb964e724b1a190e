"""Networks of the zoo by name."""
import logging
import os
import os.path as osp
from typing import Dict, Optional, Sequence, Union

import torch
from torch import Tensor, nn

from mmcontext.utils.checkpoint import load_checkpoint_file, misfit
from mmcontext.utils.errors import CheckpointError
from mmcontext.zoo.classifier import ZooClassifier, ZooFeatures, first_convolution
from mmcontext.zoo.index import Entry, find

logger = logging.getLogger('mmcontext')
_WEIGHT_FILES = ('model.safetensors', 'pytorch_model.bin')


def create_model(name: str, num_classes: Optional[int] = None, in_channels: Optional[int] = None,
                 features_only: bool = False,
                 out_indices: Union[int, Sequence[int], None] = None,
                 pretrained: Union[str, os.PathLike, None] = None, global_pool: str = 'avg',
                 drop_rate: Optional[float] = None,
                 **backbone_options) -> Union[ZooClassifier, ZooFeatures]:
    """A network of the zoo as a plain PyTorch module; needs no mm library but mmengine and mmcv.

    Args:
        name: Name in the zoo, see :func:`mmcontext.list_models`; ``_imagenet`` may be left out.
        num_classes: Classes of the linear layer; None for those of the config, 0 for no layer.
        in_channels: Channels of the input; None for those of the config.
        features_only: Return the feature maps of the stages as a list; the backbones of detectors
            and segmentors can be named too.
        out_indices: Stages to return, 0 to 3, or -1 for the last; None for all, the earliest
            first. For ``features_only``.
        pretrained: Checkpoint (from mmpretrain's training, converted from the authors', or
            safetensors), or a folder with one; None or False for none. The first convolution is
            adapted to another number of channels, and the linear layer is initialised for other
            classes, as in timm.
        global_pool: Pooling of the last feature map: 'avg' (default), 'max', or '' for none,
            which needs ``num_classes=0``.
        drop_rate: Dropout before the linear layer; None for the config's.
        **backbone_options: Arguments of the backbone that override the config's, such as
            ``base_channels``, ``drop_path_rate`` or ``output_stride``.

    Returns:
        The model, in training mode.

    Raises:
        ValueError: The name or an argument is wrong.
        CheckpointError: ``pretrained`` is missing, damaged, or for another network.
    """
    entry = find(name)
    if features_only:
        of_the_head = dict(num_classes=(num_classes, None), global_pool=(global_pool, 'avg'),
                           drop_rate=(drop_rate, None))
        for argument, (value, default) in of_the_head.items():
            if value != default:
                raise ValueError(f'{argument}={value!r} has no meaning with features_only')
        model = ZooFeatures(entry, in_channels, out_indices, **backbone_options)
    elif entry.task != 'classification':
        raise ValueError(f'{entry.name} is a network for {entry.task}: features_only=True gives '
                         'its backbone, mmcontext.get_config(name) its config')
    elif out_indices is not None:
        raise ValueError(f'out_indices={out_indices!r} needs features_only=True')
    else:
        model = ZooClassifier(entry, num_classes, in_channels, global_pool, drop_rate,
                              **backbone_options)
    if pretrained is not None and pretrained is not False:
        load_pretrained(model, entry, pretrained)
    return model


def weight_file(path: Union[str, os.PathLike]) -> str:
    """The checkpoint for a path: the file itself, or the one in a folder.

    Raises:
        CheckpointError: The folder contains none, or several.
    """
    path = osp.expanduser(os.fspath(path))
    if not osp.isdir(path):
        return path
    files = sorted(os.listdir(path))
    for name in _WEIGHT_FILES:
        if name in files:
            return osp.join(path, name)
    weights = [name for name in files if name.endswith(('.safetensors', '.pth'))]
    if len(weights) != 1:
        raise CheckpointError(f'folder {path} must hold one checkpoint (.safetensors or .pth), '
                              f'it holds {len(weights)}')
    return osp.join(path, weights[0])


def adapt_channels(weight: Tensor, in_channels: int) -> Tensor:
    """Weight of a first convolution for another number of channels, as in timm.

    Args:
        weight: [out, old, *kernel].
        in_channels: New number of channels. For one, the old ones are summed; for more, they are
            repeated and scaled so that equal channels give equal outputs.

    Returns:
        [out, in_channels, *kernel].
    """
    old = weight.shape[1]
    if in_channels == 1:
        return weight.sum(dim=1, keepdim=True)
    repeats = -(-in_channels // old)
    repeated = weight.repeat(1, repeats, *(1, ) * (weight.dim() - 2))[:, :in_channels]
    return repeated * (old / in_channels)


def _fitted(state: Dict[str, Tensor], model: nn.Module) -> Dict[str, Tensor]:
    """The entries, with first convolution and linear layer adapted to this model."""
    state, wanted = dict(state), model.state_dict()
    first = f'backbone.{first_convolution(model.backbone)}.weight'
    if first in state and first in wanted and state[first].shape[2:] == wanted[first].shape[2:]:
        channels = wanted[first].shape[1]
        if state[first].shape[1] != channels:
            state[first] = adapt_channels(state[first], channels)
    if isinstance(model, ZooFeatures):
        state = {key: value for key, value in state.items() if key.startswith('backbone.')}
    else:
        for key in [key for key in state if key.startswith('head.fc.')]:
            if model.num_classes == 0:
                del state[key]
            elif state[key].shape[:1] != wanted[key].shape[:1]:
                logger.info('%s has %d classes and the checkpoint %d: it starts anew', key,
                            len(wanted[key]), len(state[key]))
                state[key] = wanted[key]
    return state


def load_pretrained(model: nn.Module, entry: Entry, path: Union[str, os.PathLike]) -> None:
    """Load a checkpoint into a model of :func:`create_model`.

    Args:
        model: The model.
        entry: Its network.
        path: Its ``pretrained``.

    Raises:
        CheckpointError: The file is missing, damaged, or for another network.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f'pretrained must be a file or folder with weights, got {path!r}; none '
                         'are hosted for this package, the README of each family names the '
                         "authors' downloads")
    file = weight_file(path)
    checkpoint = load_checkpoint_file(file, map_location='cpu')
    state = checkpoint.get('state_dict', checkpoint)
    state = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    state = _fitted(state, model)
    problems = misfit(state, model.state_dict())
    if problems:
        raise CheckpointError(
            f"checkpoint {file} does not fit {entry.name}: {problems}; an authors' file "
            'is converted by tools/model_converters/convert_official.py')
    with torch.no_grad():
        model.load_state_dict(state)
