_base_ = './fpn_cotnet50_512x1024_80k_cityscapes.py'

model = dict(
    neck=dict(
        type='mmcontext.ContextFPN',
        context_cfg=dict(type='mmcontext.CoT2d', norm_cfg=dict(type='SyncBN'))))
