_base_ = './retinanet_rednet50_fpn_1x_coco.py'

model = dict(
    neck=dict(
        type='mmcontext.ContextFPN',
        context_cfg=dict(type='mmcontext.Involution2d')))
optim_wrapper = dict(clip_grad=dict(max_norm=40, norm_type=2))
