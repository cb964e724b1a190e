# "ResNet strikes back", https://arxiv.org/abs/2110.00476, procedure A3: 100 epochs.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs2048_rsb.py'

optim_wrapper = dict(
    optimizer=dict(lr=0.008),
    paramwise_cfg=dict(bias_decay_mult=0., norm_decay_mult=0.))
