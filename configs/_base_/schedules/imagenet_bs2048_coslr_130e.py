_base_ = 'mmpretrain::_base_/schedules/imagenet_bs2048_coslr.py'

# The warm-up multiplies the cosine, which starts at the first epoch.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.25, by_epoch=False, begin=0, end=3130),
    dict(type='CosineAnnealingLR', T_max=130, by_epoch=True, begin=0, end=130)
]
train_cfg = dict(max_epochs=130)
