_base_ = [
    '../_base_/models/ccnn_4_140_sequence.py',
    '../_base_/datasets/ccnn_lra_listops.py',
    '../_base_/schedules/ccnn_60e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(
        conv_cfg=dict(kernel_cfg=dict(omega_0=784.655), mask_cfg=dict(init=0.03)),
        drop_rate=0.1,
        drop_type='element'))

optim_wrapper = dict(optimizer=dict(lr=0.001))
custom_hooks = [dict(type='mmcontext.KernelPenaltyHook', weight=1e-06)]
