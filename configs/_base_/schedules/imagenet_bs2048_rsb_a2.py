# "ResNet strikes back", https://arxiv.org/abs/2110.00476, procedure A2: 300 epochs.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs2048_rsb.py'

optim_wrapper = dict(paramwise_cfg=dict(bias_decay_mult=0., norm_decay_mult=0.))
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=295, end=300)
train_cfg = dict(max_epochs=300)
