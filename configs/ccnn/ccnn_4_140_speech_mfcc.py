_base_ = [
    '../_base_/models/ccnn_4_140_sequence.py',
    '../_base_/datasets/ccnn_speech_mfcc.py',
    '../_base_/schedules/ccnn_110e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(
        in_channels=20,
        conv_cfg=dict(kernel_cfg=dict(omega_0=750.1822972936538)),
        drop_rate=0.2))

optim_wrapper = dict(optimizer=dict(lr=0.02))
custom_hooks = [dict(type='mmcontext.KernelPenaltyHook', weight=1e-06)]
