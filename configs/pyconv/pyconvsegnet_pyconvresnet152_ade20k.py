_base_ = './pyconvsegnet_pyconvresnet50_ade20k.py'

model = dict(
    backbone=dict(
        depth=152, init_cfg=dict(checkpoint='checkpoints/pyconvresnet152.pth')))
