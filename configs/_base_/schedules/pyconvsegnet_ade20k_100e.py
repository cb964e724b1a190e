_base_ = './pyconvsegnet_80k.py'
# 100 epochs of 20210 images in batches of 16: 100 * floor(20210 / 16)
max_iters = 126300
param_scheduler = [
    dict(
        type='PolyLR',
        eta_min=0,
        power=0.9,
        begin=0,
        end=max_iters,
        by_epoch=False)
]
train_cfg = dict(max_iters=max_iters, val_interval=12630)
default_hooks = dict(checkpoint=dict(interval=12630))
