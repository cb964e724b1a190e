_base_ = './pyconvsegnet_resnet50_ade20k.py'

model = dict(
    backbone=dict(
        depth=101,
        init_cfg=dict(checkpoint='torchvision://resnet101')))
