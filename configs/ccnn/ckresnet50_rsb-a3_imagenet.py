_base_ = [
    '../_base_/models/ckresnet50.py',
    '../_base_/datasets/imagenet_bs256_rsb_a3_160.py',
    '../_base_/schedules/imagenet_bs2048_rsb_a3.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    head=dict(loss=dict(_delete_=True, type='CrossEntropyLoss', use_sigmoid=True)),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.1), dict(type='CutMix', alpha=1.0)]))
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(mask_width=dict(lr_mult=0.1, decay_mult=0.))))
