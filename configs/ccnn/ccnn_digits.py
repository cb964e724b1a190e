# A small CCNN on scikit-learn's digits: trains in minutes on two cores. The pools make 32x32
# affordable there; the published networks have none.
_base_ = [
    '../_base_/models/ccnn_4_140_image.py',
    '../_base_/datasets/digits.py',
    '../_base_/schedules/digits.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(
        channels=32,
        num_blocks=3,
        pools=(0, 1),
        conv_cfg=dict(
            kernel_size=17,
            kernel_cfg=dict(hidden_channels=16, omega_0=100.),
            mask_cfg=dict(init=0.15))),
    head=dict(in_channels=32))

optim_wrapper = dict(
    optimizer=dict(lr=5e-3, weight_decay=0.),
    paramwise_cfg=dict(custom_keys=dict(mask_width=dict(lr_mult=0.1))))
custom_hooks = [dict(type='mmcontext.KernelPenaltyHook', weight=1e-5)]
