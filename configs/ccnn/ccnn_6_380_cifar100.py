_base_ = [
    '../_base_/models/ccnn_6_380_image.py',
    '../_base_/datasets/ccnn_cifar100.py',
    '../_base_/schedules/ccnn_210e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(
        conv_cfg=dict(kernel_size=31, kernel_cfg=dict(omega_0=679.142)),
        drop_rate=0.2),
    head=dict(num_classes=100))

optim_wrapper = dict(optimizer=dict(lr=0.02))
