_base_ = './fpn_rednet50_512x1024_80k_cityscapes.py'

model = dict(
    neck=dict(
        type='mmcontext.ContextFPN',
        context_cfg=dict(type='mmcontext.Involution2d')))
