_base_ = 'mmpretrain::_base_/schedules/imagenet_bs256.py'

optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic', optimizer=dict(lr=0.4))
# The authors name 300 epochs but no milestones: these are CutMix's own for 300 epochs.
param_scheduler = dict(milestones=[75, 150, 225])
train_cfg = dict(max_epochs=300)
auto_scale_lr = dict(base_batch_size=1024)
