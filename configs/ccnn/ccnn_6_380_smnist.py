_base_ = [
    '../_base_/models/ccnn_6_380_sequence.py',
    '../_base_/datasets/ccnn_smnist.py',
    '../_base_/schedules/ccnn_210e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(
        conv_cfg=dict(kernel_cfg=dict(omega_0=2976.4910261630357)),
        drop_rate=0.1))

custom_hooks = [dict(type='mmcontext.KernelPenaltyHook', weight=1e-06)]
