_base_ = [
    '../_base_/models/pyconvsegnet.py',
    '../_base_/datasets/digits_cityscapes.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

# A quarter of the usual width with two levels (3x3 and 5x5) in every stage, trained from scratch.
# The strokes of the digits are thinner than a cell at output stride 8, so the stride is 4.
norm_cfg = dict(type='BN', requires_grad=True)
# Five pixels in six are background: without weights, the ten digits remain one class for hundreds
# of iterations.
sampler = dict(type='mmcontext.ClassWeightSampler', class_weight=[0.25] + [1.0] * 10)
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(
        _delete_=True,
        type='mmcontext.PyConvResNet',
        depth=18,
        base_channels=16,
        layer_cfg=dict(groups=(1, 4)),
        strides=(2, 1, 1, 1),
        out_indices=(0, 1, 2, 3),
        norm_cfg=norm_cfg),
    decode_head=dict(
        in_channels=128,
        channels=64,
        context_channels=64,
        reduction=2,
        dropout_ratio=0,
        num_classes=11,
        norm_cfg=norm_cfg,
        sampler=sampler),
    auxiliary_head=dict(
        in_channels=64,
        channels=64,
        dropout_ratio=0,
        num_classes=11,
        norm_cfg=norm_cfg,
        sampler=sampler))

max_iters = 1200
train_dataloader = dict(batch_size=4)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=200)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.003, weight_decay=0.01),
    clip_grad=dict(max_norm=5, norm_type=2))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=0.9, eta_min=0, by_epoch=False, begin=50, end=max_iters),
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=200, max_keep_ckpts=2),
    visualization=dict(type='SegVisualizationHook'))
randomness = dict(seed=0)
# 2 processes with 4 scenes each
auto_scale_lr = dict(enable=False, base_batch_size=8)
