_base_ = [
    '../_base_/models/ccnn_4_140_image.py',
    '../_base_/datasets/ccnn_cifar100.py',
    '../_base_/schedules/ccnn_210e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(
        conv_cfg=dict(kernel_cfg=dict(omega_0=3521.5468260391735)),
        drop_rate=0.1),
    head=dict(num_classes=100))

optim_wrapper = dict(optimizer=dict(lr=0.02))
custom_hooks = [dict(type='mmcontext.KernelPenaltyHook', weight=0.0001)]
