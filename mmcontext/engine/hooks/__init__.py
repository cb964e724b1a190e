"""Training hooks."""
from .atomic_checkpoint_hook import AtomicCheckpointHook, AtomicLocalBackend
from .class_count_hook import ClassCountHook, check_classes
from .compile_hook import CompileHook
from .cuda_graph_hook import CudaGraphHook
from .exact_resume_hook import ExactResumeHook
from .kernel_penalty_hook import KernelPenaltyHook, kernel_penalty
from .precise_statistics_hook import PreciseStatisticsHook, update_bn_stats

__all__ = ['AtomicCheckpointHook', 'AtomicLocalBackend', 'ClassCountHook', 'CompileHook',
           'CudaGraphHook', 'ExactResumeHook', 'KernelPenaltyHook', 'PreciseStatisticsHook',
           'check_classes', 'kernel_penalty', 'update_bn_stats']
