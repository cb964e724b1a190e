_base_ = [
    '../_base_/models/ccnn_4_140_image.py',
    '../_base_/datasets/ccnn_lra_image_2d.py',
    '../_base_/schedules/ccnn_210e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(
        in_channels=1,
        conv_cfg=dict(kernel_cfg=dict(omega_0=2085.433586112234)),
        drop_rate=0.2))

optim_wrapper = dict(optimizer=dict(lr=0.02))
custom_hooks = [dict(type='mmcontext.KernelPenaltyHook', weight=1e-06)]
