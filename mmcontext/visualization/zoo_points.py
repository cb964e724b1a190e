"""Accuracy over size, cost and speed of the zoo's networks, from the metafiles."""
import json
import re
from typing import Dict, List, NamedTuple, Optional

from mmcontext.utils.errors import UserError
from mmcontext.zoo.index import Entry, entries


class Point(NamedTuple):
    """A network: published top-1 in %, parameters in M, multiply-adds in G, and, if measured,
    milliseconds per image."""
    name: str
    family: str
    top1: float
    params: float
    flops: float
    latency: Optional[float] = None


def _top1(entry: Entry) -> Optional[float]:
    for result in entry.results:
        if result['Dataset'].startswith('ImageNet'):
            return result['Metrics'].get('Top 1 Accuracy')
    return None


def read_latencies(path: Optional[str]) -> Dict[str, float]:
    """Milliseconds by network from the JSON of ``tools/benchmarks/bench_models.py``.

    Args:
        path: The file; None for no latencies.

    Returns:
        Name, such as 'cednet50', to the median of its inference in the faster of its layouts.

    Raises:
        UserError: It is not such a file.
    """
    if path is None:
        return {}
    try:
        with open(path) as file:
            rows = json.load(file)['inference']
        found: Dict[str, float] = {}
        for key, row in rows.items():
            name = key.split()[0].lower().replace('-', '')
            found[name] = min(found.get(name, float('inf')), row['ms'][1])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f'{path} is not a result of bench_models.py --out: {error!r}') from error
    return found


def zoo_points(latencies: Optional[Dict[str, float]] = None) -> List[Point]:
    """The ImageNet networks with a published accuracy.

    Args:
        latencies: See :func:`read_latencies`.
    """
    points = []
    for entry in entries().values():
        top1, metadata = _top1(entry), entry.metadata
        if top1 is None or 'FLOPs' not in metadata:
            continue
        short = entry.name.replace('_imagenet', '')
        family = re.match('[a-z_]+', short)[0] + (' +augment' if '_augment' in short else '')
        points.append(Point(short, family, top1,
                            metadata['Parameters'] / 1e6, metadata['FLOPs'] / 1e9,
                            (latencies or {}).get(short.replace('_', ''))))
    return points
