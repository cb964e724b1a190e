_base_ = [
    '../_base_/models/ccnn_4_140_image.py',
    '../_base_/datasets/ccnn_stl10.py',
    '../_base_/schedules/ccnn_210e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(
        conv_cfg=dict(kernel_cfg=dict(omega_0=954.281)),
        drop_rate=0.1,
        drop_type='element'))

optim_wrapper = dict(optimizer=dict(lr=0.02), accumulative_counts=4)
