"""Clocks of the campaign: pure GPU time, pure host time, peak memory, CUDA graphs.

On a CPU (a dry run) the same calls use the clock of the host, so that all the code runs there
too; such figures mean nothing.
"""
import contextlib
import math
import statistics
import time
from typing import Callable, ContextManager

import torch

_FLOOD_BYTES = 256 << 20
_MAX_FILLS = 100


class _HostEvent:
    """A torch.cuda.Event that uses the clock of the host."""

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, end: '_HostEvent') -> float:
        return 1e3 * (end.seconds - self.seconds)


class Device:
    """Clocks of one device.

    Args:
        name: 'cuda', or 'cpu' for a dry run.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.on_gpu = name == 'cuda'
        self._flood = torch.empty(_FLOOD_BYTES // 4 if self.on_gpu else 16, device=name)
        self._fill_us = self._pair_us(self._empty_cache, 3, 0)

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def _event(self):
        return torch.cuda.Event(enable_timing=True) if self.on_gpu else _HostEvent()

    def _empty_cache(self) -> None:
        """Writes more than the L2 cache holds."""
        self._flood.fill_(0)

    def _pair_us(self, run: Callable[[], object], repeats: int, fills: int) -> float:
        pairs = [(self._event(), self._event()) for _ in range(repeats)]
        for start, end in pairs:
            for _ in range(fills):
                self._empty_cache()
            start.record()
            run()
            end.record()
        self.synchronize()
        return statistics.median(1e3 * start.elapsed_time(end) for start, end in pairs)

    def gpu_us(self, run: Callable[[], object], repeats: int = 20) -> float:
        """Median GPU microseconds of a call, with a flushed L2 cache.

        The fills before each call last longer than the host needs to launch it, so that the
        GPU never waits for the host between the two events.
        """
        run()
        host_us = self.host_us(run, 3)
        fills = 1 + min(math.ceil(1.5 * host_us / self._fill_us), _MAX_FILLS)
        return self._pair_us(run, repeats if self.on_gpu else 2, fills)

    def host_us(self, run: Callable[[], object], repeats: int = 30) -> float:
        """Median microseconds until a call returns, starting with an idle GPU."""
        times = []
        for _ in range(repeats):
            self.synchronize()
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        self.synchronize()
        return 1e6 * statistics.median(times)

    def wall_ms(self, run: Callable[[], object], repeats: int) -> float:
        """Mean milliseconds of calls in a row, host and GPU together."""
        self.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        self.synchronize()
        return 1e3 * (time.perf_counter() - start) / repeats

    def copy_bandwidth(self) -> float:
        """Bytes read and written by a large copy in a second."""
        source = torch.empty(1 << (28 if self.on_gpu else 10), device=self.name)
        target = torch.empty_like(source)
        us = self._pair_us(lambda: target.copy_(source), 10, 0)
        return 2 * source.numel() * source.element_size() / (1e-6 * us)

    def peak_mib(self, run: Callable[[], object], whole: bool = False) -> float:
        """MiB allocated at the peak of a call; 0 on a CPU.

        Args:
            run: The call.
            whole: Whether memory allocated before the call (except the clock's own) counts too.
        """
        if not self.on_gpu:
            run()
            return 0.
        self.synchronize()
        before = _FLOOD_BYTES if whole else torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        self.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / (1 << 20)

    def side_stream(self) -> ContextManager:
        """A new stream that follows the current one, which waits for it at the end."""
        return _side_stream() if self.on_gpu else contextlib.nullcontext()

    def capture(self, step: Callable[[], object]) -> Callable[[], None]:
        """The step as one CUDA graph; on a CPU the step itself."""
        with self.side_stream():
            for _ in range(3 if self.on_gpu else 1):
                step()
        if not self.on_gpu:
            return step
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay


@contextlib.contextmanager
def _side_stream():
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)
