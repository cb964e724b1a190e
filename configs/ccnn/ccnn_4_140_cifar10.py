_base_ = [
    '../_base_/models/ccnn_4_140_image.py',
    '../_base_/datasets/ccnn_cifar10.py',
    '../_base_/schedules/ccnn_350e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(
        conv_cfg=dict(kernel_cfg=dict(omega_0=4231.568793085858), mask_cfg=dict(init=0.75)),
        drop_rate=0.1))

train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=0.02))
custom_hooks = [dict(type='mmcontext.KernelPenaltyHook', weight=0.0001)]
