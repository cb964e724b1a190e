_base_ = './fpn_pyconvresnet50_512x1024_80k_cityscapes.py'

model = dict(
    neck=dict(
        type='mmcontext.ContextFPN',
        context_cfg=dict(type='mmcontext.PyConv2d', bias=True)))
