_base_ = [
    '../_base_/models/ccnn_6_380_image.py',
    '../_base_/datasets/ccnn_cifar10.py',
    '../_base_/schedules/ccnn_210e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(
        conv_cfg=dict(kernel_cfg=dict(omega_0=976.781)),
        drop_rate=0.15))

optim_wrapper = dict(optimizer=dict(lr=0.01))
