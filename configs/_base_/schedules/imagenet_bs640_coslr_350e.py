lr = 0.25
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=lr, momentum=0.9, weight_decay=4e-5, nesterov=True),
    paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0.))

# Both change once per epoch. The cosine starts at the first epoch and is multiplied by the
# warm-up; the last factor of LinearLR, 1, is that of epoch 5.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4 / lr, by_epoch=True, begin=0, end=6),
    dict(type='CosineAnnealingLR', T_max=350, eta_min=1e-5, by_epoch=True, begin=0, end=350)
]

train_cfg = dict(by_epoch=True, max_epochs=350, val_interval=1)
val_cfg = dict()
test_cfg = dict()

# EMA decay 0.9999, including batch-norm statistics, which are averaged over the processes after
# every epoch.
custom_hooks = [
    dict(type='SyncBuffersHook'),
    dict(type='EMAHook', momentum=1e-4, update_buffers=True, priority='ABOVE_NORMAL')
]

auto_scale_lr = dict(base_batch_size=640)
