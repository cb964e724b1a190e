# Weight decay is a penalty in the loss, see KernelPenaltyHook.
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=True, begin=0, end=10,
         convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=50, by_epoch=True, begin=10, end=60,
         convert_to_iter_based=True),
]

train_cfg = dict(by_epoch=True, max_epochs=60, val_interval=1)
val_cfg = dict()
test_cfg = dict()
