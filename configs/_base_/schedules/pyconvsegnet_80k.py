_base_ = 'mmseg::_base_/schedules/schedule_80k.py'
optimizer = dict(
    type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4)
# Parts without pre-training have ten times the learning rate.
optim_wrapper = dict(
    optimizer=optimizer,
    paramwise_cfg=dict(custom_keys=dict(
        decode_head=dict(lr_mult=10.), auxiliary_head=dict(lr_mult=10.))))
param_scheduler = [
    dict(
        type='PolyLR',
        eta_min=0,
        power=0.9,
        begin=0,
        end=80000,
        by_epoch=False)
]
# 4 GPUs with 4 images each
auto_scale_lr = dict(enable=False, base_batch_size=16)
