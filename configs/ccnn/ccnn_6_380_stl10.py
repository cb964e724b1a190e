_base_ = [
    '../_base_/models/ccnn_6_380_image.py',
    '../_base_/datasets/ccnn_stl10.py',
    '../_base_/schedules/ccnn_210e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(
        conv_cfg=dict(kernel_size=31, kernel_cfg=dict(omega_0=954.281)),
        drop_rate=0.1,
        drop_type='element'))

train_dataloader = dict(batch_size=48)
optim_wrapper = dict(optimizer=dict(lr=0.01), accumulative_counts=2)
