_base_ = [
    '../_base_/models/ccnn_4_140_sequence.py',
    '../_base_/datasets/ccnn_lra_text.py',
    '../_base_/schedules/ccnn_60e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(
        conv_cfg=dict(kernel_cfg=dict(omega_0=2966.6045345584143), mask_cfg=dict(init=0.015)),
        drop_rate=0.2,
        drop_type='element'),
    head=dict(_delete_=True, type='mmcontext.BinaryClsHead', in_channels=140))

optim_wrapper = dict(optimizer=dict(lr=0.001))
custom_hooks = [dict(type='mmcontext.KernelPenaltyHook', weight=1e-05)]
