"""Comparison of networks: size, cost, speed, memory and what they see."""
import csv
import statistics
import time
from typing import Dict, List, Optional, Sequence

import torch
from mmengine.utils import track_iter_progress
from torch import Tensor

from mmcontext.engine.flops import config_complexity
from mmcontext.utils.errors import UserError
from mmcontext.visualization.networks import Network, channels_of, settle
from mmcontext.visualization.receptive_field import areas, field_of

COLUMNS = ('network', 'params_m', 'flops_g', 'latency_ms', 'images_per_s', 'memory_mb',
           'field_50_px', 'field_90_px')


def latencies(networks: Sequence[Network], batches: Sequence[Tensor],
              rounds: int) -> List[float]:
    """Median seconds per pass through each backbone, run in turn so that noise affects all."""
    times = [[] for _ in networks]
    with torch.inference_mode():
        for index in track_iter_progress(range(rounds + 1)):
            for network, batch, record in zip(networks, batches, times):
                start = time.perf_counter()
                network.backbone(batch)
                if batch.is_cuda:
                    torch.cuda.synchronize()
                if index:  # the first round warms up
                    record.append(time.perf_counter() - start)
    return [statistics.median(record) for record in times]


def training_memory(network: Network, x: Tensor) -> int:
    """Bytes that a training step needs in addition to parameters.

    On a GPU this is the peak of allocated memory; on a CPU, where that is not recorded, what the
    backbone keeps for its backward pass.
    """
    backbone = network.backbone.train().requires_grad_(True)
    own = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
    kept: Dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    try:
        if x.is_cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            sum(level.sum() for level in backbone(x)).backward()
            return torch.cuda.max_memory_allocated() - before
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            levels = backbone(x)
        del levels
        return sum(kept.values())
    finally:
        backbone.zero_grad(set_to_none=True)
        backbone.eval().requires_grad_(False)


def compare(networks: Sequence[Network], size: int, batch: int = 8, rounds: int = 5,
            fields: Optional[Sequence[Tensor]] = None) -> List[dict]:
    """One row for each network.

    Args:
        networks: They are moved to the GPU if there is one.
        size: Side of the images in pixels.
        batch: Batch size for throughput and memory. Latency is for one image.
        rounds: Number of timings over which the median is taken.
        fields: For each network the images, [B, C, H, W], for the receptive field of its last
            stage; None for two of noise, to which a trained network may not respond.

    Returns:
        Dicts with the keys :data:`COLUMNS`: parameters in millions, multiply-adds in billions
        (both of the whole model), then for the backbone alone: milliseconds per image, images per
        second in batches, megabytes (see :func:`training_memory`), and the side in pixels of the
        square with 50 and 90 % of the effective receptive field.
    """
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    for network in networks:
        network.model.to(device)
    inputs = [torch.randn(batch, channels_of(network), size, size, device=device,
                          generator=torch.Generator(device).manual_seed(0))
              for network in networks]
    for network, images in zip(networks, inputs):
        if not network.trained:
            settle(network.backbone, images)
    single = latencies(networks, [images[:1] for images in inputs], rounds)
    many = latencies(networks, inputs, max(rounds // 2, 1))
    fields = [images[:2] for images in inputs] if fields is None else fields
    rows = []
    for network, images, seen, one, all_of_them in zip(networks, inputs, fields, single, many):
        counts = config_complexity(network.cfg, (size, size))
        try:
            # (Before the training pass, which changes the norms.)
            field = areas(field_of(network, seen.to(device)), (0.5, 0.9))
        except ValueError as error:
            raise UserError(f'{network.label}: {error} '
                            '(of noise, where no --image is given)') from error
        memory = training_memory(network, images)
        rows.append(dict(zip(COLUMNS, (
            network.label, round(counts.params / 1e6, 3), round(counts.flops / 1e9, 3),
            round(1e3 * one, 2), round(batch / all_of_them, 1), round(memory / 2**20, 1),
            field[0.5][0], field[0.9][0]))))
    return rows


def as_markdown(rows: Sequence[dict]) -> str:
    """The rows as a table."""
    lines = [' | '.join(COLUMNS), ' | '.join(['---'] * len(COLUMNS))]
    lines += [' | '.join(str(row[column]) for column in COLUMNS) for row in rows]
    return '\n'.join(f'| {line} |' for line in lines)


def write_csv(rows: Sequence[dict], path: str) -> None:
    """Write the rows with a header."""
    with open(path, 'w', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
