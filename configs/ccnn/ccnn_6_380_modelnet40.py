_base_ = [
    '../_base_/models/ccnn_4_140_points.py',
    '../_base_/datasets/ccnn_modelnet40.py',
    '../_base_/schedules/ccnn_200e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(
        channels=380,
        num_blocks=6,
        conv_cfg=dict(num_neighbours=64, kernel_cfg=dict(hidden_channels=64))),
    head=dict(in_channels=380))

optim_wrapper = dict(accumulative_counts=2)
custom_hooks = [dict(type='mmcontext.KernelPenaltyHook', weight=1e-8)]
