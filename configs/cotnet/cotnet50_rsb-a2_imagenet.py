_base_ = [
    '../_base_/models/cotnet50.py',
    '../_base_/datasets/imagenet_bs256_rsb_a2.py',
    '../_base_/schedules/imagenet_bs2048_rsb_a2.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(drop_path_rate=0.05),
    head=dict(
        dropout=0.,
        loss=dict(_delete_=True, type='CrossEntropyLoss', use_sigmoid=True)),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.1), dict(type='CutMix', alpha=1.0)]))
