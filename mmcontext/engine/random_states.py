"""The random states of a process: Python, numpy, torch and the accelerator."""
import random
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Sequence

import numpy as np
import torch
from mmengine.device import get_device


def _accelerator() -> Any:
    """torch's module for the accelerator; None if there is none with random states."""
    module = getattr(torch, get_device(), None)
    return module if hasattr(module, 'get_rng_state') else None


def capture() -> Dict[str, Any]:
    """The states as tensors, numbers and strings, which ``weights_only=True`` loads.

    Of several accelerators in one process, only the current one is included.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    states = dict(
        python=dict(version=version, words=torch.tensor(words), gauss=gauss),
        numpy=dict(name=str(name), keys=torch.from_numpy(keys.astype(np.int64)),
                   position=int(position), has_gauss=int(has_gauss), cached=float(cached)),
        torch=torch.get_rng_state())
    accelerator = _accelerator()
    if accelerator is not None:
        states[get_device()] = accelerator.get_rng_state()
    return states


def restore(states: Dict[str, Any]) -> None:
    """Restore the states returned by :func:`capture`, loaded onto any device."""
    python, numpy = states['python'], states['numpy']
    random.setstate((python['version'], tuple(python['words'].tolist()), python['gauss']))
    np.random.set_state((numpy['name'], numpy['keys'].cpu().numpy().astype(np.uint32),
                         numpy['position'], numpy['has_gauss'], numpy['cached']))
    torch.set_rng_state(states['torch'].cpu())
    accelerator = _accelerator()
    if accelerator is not None and get_device() in states:
        accelerator.set_rng_state(states[get_device()].cpu())


@contextmanager
def seeded(entropy: Sequence[int]) -> Iterator[None]:
    """Context with random numbers on the CPU from a seed of several numbers.

    The previous states are restored afterwards.

    Args:
        entropy (sequence of int): not negative; different sequences give unrelated numbers.
    """
    words = np.random.SeedSequence(list(entropy)).generate_state(8)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(int.from_bytes(words.tobytes(), 'little'))
    np.random.seed(words)
    # Not torch.manual_seed, which seeds accelerators too.
    torch.default_generator.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
