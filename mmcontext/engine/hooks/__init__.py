"""Training hooks."""
from .atomic_checkpoint_hook import AtomicCheckpointHook, AtomicLocalBackend
from .class_count_hook import ClassCountHook, check_classes
from .exact_resume_hook import ExactResumeHook
from .kernel_penalty_hook import KernelPenaltyHook, kernel_penalty

__all__ = ['AtomicCheckpointHook', 'AtomicLocalBackend', 'ClassCountHook', 'ExactResumeHook',
           'KernelPenaltyHook', 'check_classes', 'kernel_penalty']
