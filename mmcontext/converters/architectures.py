"""The names accepted by ``convert_official.py --arch``."""
from typing import Dict, Mapping, NamedTuple, Optional, Sequence

from mmcontext.converters import rules
from mmcontext.converters.detectors import DETECTORS
from mmcontext.converters.rules import Rule


class Architecture(NamedTuple):
    """A published network: the config that builds it here, and how its keys are renamed."""
    config: str
    rules: Sequence[Rule]
    # The authors' entry with one row per class, if their checkpoints differ in that number.
    classes_from: Optional[str] = None
    # Configs for numbers of classes other than that of ``config``.
    configs_by_classes: Mapping[int, str] = {}


ARCHITECTURES: Dict[str, Architecture] = {
    **{f'coresnet{d}': Architecture(f'coconv/coresnet{d}_imagenet.py', rules.PYRAMID_BOTTLENECK)
       for d in (50, 101, 152)},
    **{f'pyconvresnet{d}': Architecture(f'pyconv/pyconvresnet{d}_imagenet.py',
                                        rules.PYRAMID_BASIC) for d in (18, 34)},
    **{f'{name}{d}': Architecture(f'pyconv/{name}{d}_imagenet.py', rules.PYRAMID_BOTTLENECK)
       for name in ('pyconvresnet', 'pyconvhgresnet') for d in (50, 101, 152)},
    **{f'cotnet{d}': Architecture(f'cotnet/cotnet{d}_imagenet.py', rules.COTNET)
       for d in (50, 101)},
    **{f'cotnext{d}_2x48d': Architecture(f'cotnet/cotnext{d}_imagenet.py', rules.COTNET)
       for d in (50, 101)},
    **{f'se_cotnetd_{d}': Architecture(f'cotnet/se_cotnetd{d}_imagenet.py', rules.SE_COTNETD)
       for d in (50, 101, 152)},
    **{f'rednet{d}': Architecture(f'rednet/rednet{d}_imagenet.py', rules.REDNET)
       for d in (26, 38, 50, 101, 152)},
    **{f'cednet{d}': Architecture(f'cednet/cednet{d}_imagenet.py', rules.CEDNET)
       for d in (26, 38, 50, 101, 152)},
    **{name: Architecture(*entry) for name, entry in DETECTORS.items()},
    **{f'pyconvsegnet_{name}{d}': Architecture(
        f'pyconv/pyconvsegnet_{name}{d}_ade20k.py', rule, classes_from='cls.1.weight',
        configs_by_classes={19: f'pyconv/pyconvsegnet_{name}{d}_cityscapes.py'} if d == 50 else {})
       for name, rule in (('resnet', rules.PYCONVSEGNET_RESNET),
                          ('pyconvresnet', rules.PYCONVSEGNET_PYCONVRESNET))
       for d in (50, 101, 152)},
}
