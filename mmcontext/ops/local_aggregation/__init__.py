"""Aggregation of a neighbourhood with a different kernel at every pixel."""
from mmcontext.ops.local_aggregation.backends import Geometry, register_backend
from mmcontext.ops.local_aggregation.frontend import (
    explain,
    local_aggregation,
    standard_operators,
)
from mmcontext.ops.local_aggregation.fused import fused_involution

__all__ = [
    'Geometry', 'explain', 'fused_involution', 'local_aggregation', 'register_backend',
    'standard_operators'
]
