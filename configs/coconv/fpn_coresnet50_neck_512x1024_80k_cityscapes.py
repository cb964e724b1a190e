_base_ = './fpn_coresnet50_512x1024_80k_cityscapes.py'

model = dict(
    neck=dict(
        type='mmcontext.ContextFPN',
        context_cfg=dict(type='mmcontext.CoConv2d', bias=True)))
