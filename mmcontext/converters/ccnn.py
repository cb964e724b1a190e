"""The authors' continuous CNNs: their entries change shape as well as name."""
import re
from typing import Dict, List, Mapping, Optional, Pattern, Tuple

import torch
from torch import Tensor

from mmcontext.utils.errors import CheckpointError

# Their name in ``convert_official.py --arch``.
CCNN_ARCH = 'ccnn'

_CONV = r'((?:blocks\.\d+\.)?conv[12])'
_KERNEL_LEAF = r'(weight|bias)'

# Pattern of the whole key and its new name; None for entries without a counterpart.
_RENAMES: List[Tuple[Pattern, Optional[str]]] = [
    (re.compile(pattern), target) for pattern, target in (
        # Multiplicative filter networks (MAGNet, Gabor, Fourier), then SIREN, then MLPs.
        (rf'{_CONV}\.Kernel\.(filters\.\d+\.(?:mu|gamma))', r'backbone.\1.kernel.net.\2'),
        (rf'{_CONV}\.Kernel\.(filters\.\d+\.linear|linears\.\d+|output_linear)\.{_KERNEL_LEAF}',
         r'backbone.\1.kernel.net.\2.\3'),
        (rf'{_CONV}\.Kernel\.kernel_net\.(\d+)\.{_KERNEL_LEAF}',
         r'backbone.\1.kernel.net.layers.\2.\3'),
        (rf'{_CONV}\.Kernel\.kernel_net\.\d+\.omega_0', None),
        (rf'{_CONV}\.Kernel\.input_layers\.(0|linear)\.{_KERNEL_LEAF}',
         r'backbone.\1.kernel.net.embedding.\2.\3'),
        (rf'{_CONV}\.Kernel\.hidden_layers\.(\d+)\.{_KERNEL_LEAF}',
         r'backbone.\1.kernel.net.layers.\2.\3'),
        (rf'{_CONV}\.mask_width_param', r'backbone.\1.kernel.mask_width'),
        (rf'{_CONV}\.mask_mean_param', r'backbone.\1.kernel.mask_mean'),
        (rf'{_CONV}\.(mask_threshold|train_length|initialized)', r'backbone.\1.kernel.\2'),
        (rf'{_CONV}\.(bias|channel_mixer\.\w+)', r'backbone.\1.\2'),
        (rf'{_CONV}\.(?:conv_kernel|kernel_positions|linspace_stepsize)', None),
        (r'((?:blocks\.\d+\.)?norm[12]|out_norm|blocks\.\d+\.linear1)\.(\w+)', r'backbone.\1.\2'),
        (r'(blocks\.\d+\.shortcut)\.0\.(weight|bias)', r'backbone.\1.\2'),
        (r'out_layer\.(weight|bias)', r'head.fc.\1'),
    )
]
_BLOCK_ENTRY = re.compile(r'blocks\.([0-9]+)\.(.+)')
# Three entries per hidden layer (linear, norm, activation) in the authors' MLP; two here.
_MLP_LAYER = re.compile(r'(.*\.Kernel\.hidden_layers)\.(\d+)\.(\w+)')


def _rename(key: str) -> Optional[str]:
    """The new name; None to leave the entry out.

    Raises:
        KeyError: The key is unknown.
    """
    for pattern, target in _RENAMES:
        match = pattern.fullmatch(key)
        if match:
            return None if target is None else match.expand(target)
    raise KeyError(key)


def _renumber(state: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """Close the gaps left by pools in the numbering of blocks, and by norms in that of MLPs."""
    blocks = {key: match for key in state if (match := _BLOCK_ENTRY.fullmatch(key))}
    numbers = sorted({int(match[1]) for match in blocks.values()})
    renumbered = {}
    for key, value in state.items():
        if key in blocks:
            key = f'blocks.{numbers.index(int(blocks[key][1]))}.{blocks[key][2]}'
        match = _MLP_LAYER.fullmatch(key)
        if match:
            key = f'{match[1]}.{int(match[2]) // 3 * 2}.{match[3]}'
        renumbered[key] = value
    return renumbered


def convert_ccnn(state: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """Convert a CCNN of any size, task, block and number of axes for an ``ImageClassifier``.

    Args:
        state: The authors' entries, with or without the prefix ``network.`` (Lightning).

    Returns:
        Entries for ``mmcontext.CCNN`` and a linear head ``head.fc``.

    Raises:
        CheckpointError: It is not a CCNN; the message lists what does not fit.
    """
    prefix = 'network.'
    if any(key.startswith(prefix) for key in state):
        # Lightning also saves metrics.
        state = {k[len(prefix):]: v for k, v in state.items() if k.startswith(prefix)}
    if 'out_layer.weight' not in state:
        raise CheckpointError("the checkpoint is no CCNN: it has no entry 'out_layer.weight'")
    dim = state['out_layer.weight'].dim() - 2
    if dim not in (1, 2, 3):
        raise CheckpointError("entry 'out_layer.weight' of a CCNN must have 3 to 5 axes, got shape "
                              f'{tuple(state["out_layer.weight"].shape)}')
    converted, unknown, wrong = {}, [], []
    for key, value in _renumber(state).items():
        try:
            target = _rename(key)
        except KeyError:
            unknown.append(key)
            continue
        if target is None:
            continue
        if value.is_floating_point() and not value.isfinite().all():
            wrong.append(f'{key} is NaN or infinite')
        elif target.endswith('.train_length'):
            # One length for all axes there, one per axis here.
            if value.numel() not in (1, dim):
                wrong.append(f'{key} has shape {tuple(value.shape)}')
            else:
                value = value.long().flatten().expand(dim).clone()
        elif target.endswith('.initialized'):
            value = value.bool()
        elif target.endswith('.weight') and ('.kernel.net.' in target or '.fc.' in target):
            # 1x1 convolutions on a grid there, linear layers on a list of positions here.
            if value.dim() != dim + 2:
                wrong.append(f'{key} has shape {tuple(value.shape)}')
            else:
                value = value.flatten(1)
        converted[target] = value
    problems = [f'{len(entries)} {kind} entries: {", ".join(entries[:20])}'
                for kind, entries in (('unknown', unknown), ('unfit', wrong)) if entries]
    if problems:
        raise CheckpointError(f'the checkpoint does not fit a CCNN; {"; ".join(problems)}')
    # Older versions do not store the flag; trained kernels have been rescaled.
    for key in [k for k in converted if k.endswith('.train_length')]:
        converted.setdefault(key.replace('train_length', 'initialized'),
                             torch.ones(1, dtype=torch.bool))
    return converted
