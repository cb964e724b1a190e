_base_ = [
    '../_base_/models/ccnn_4_140_points.py',
    '../_base_/datasets/ccnn_modelnet40.py',
    '../_base_/schedules/ccnn_200e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(
        channels=16,
        conv_cfg=dict(kernel_cfg=dict(hidden_channels=8, omega_0=50.))),
    head=dict(in_channels=16))

train_dataloader = dict(batch_size=32, dataset=dict(resampling=2))
optim_wrapper = dict(accumulative_counts=2)
