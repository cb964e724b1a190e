_base_ = [
    '../_base_/models/ccnn_6_380_sequence.py',
    '../_base_/datasets/ccnn_scifar10.py',
    '../_base_/schedules/ccnn_210e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(
        in_channels=3,
        conv_cfg=dict(kernel_cfg=dict(omega_0=4005.146)),
        drop_rate=0.25))

train_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
