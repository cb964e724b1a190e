_base_ = [
    '../_base_/models/ccnn_6_380_image.py',
    '../_base_/datasets/ccnn_lra_image_2d.py',
    '../_base_/schedules/ccnn_210e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(
        in_channels=1,
        conv_cfg=dict(kernel_cfg=dict(omega_0=2306.081)),
        drop_rate=0.2))

optim_wrapper = dict(optimizer=dict(lr=0.02))
