_base_ = 'mmpretrain::_base_/schedules/imagenet_bs256.py'

optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic', optimizer=dict(lr=0.4))
param_scheduler = dict(
    _delete_=True, type='CosineAnnealingLR', T_max=300, by_epoch=True, begin=0, end=300)
train_cfg = dict(max_epochs=300)
auto_scale_lr = dict(base_batch_size=1024)
