_base_ = [
    '../_base_/models/ccnn_6_380_image.py',
    '../_base_/datasets/ccnn_lra_pathfinder_2d.py',
    '../_base_/schedules/ccnn_210e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(
        in_channels=1,
        conv_cfg=dict(kernel_cfg=dict(omega_0=3908.323), mask_cfg=dict(init=0.225)),
        drop_rate=0.2),
    head=dict(_delete_=True, type='mmcontext.BinaryClsHead', in_channels=380))

train_dataloader = dict(batch_size=50)
