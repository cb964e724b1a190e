_base_ = './fpn_cednet50_512x1024_80k_cityscapes.py'

model = dict(
    neck=dict(
        type='mmcontext.ContextFPN',
        context_cfg=dict(type='mmcontext.CVolution2d', gate_groups=4)))
