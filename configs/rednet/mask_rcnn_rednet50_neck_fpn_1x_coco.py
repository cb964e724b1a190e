_base_ = './mask_rcnn_rednet50_fpn_1x_coco.py'

model = dict(
    neck=dict(
        type='mmcontext.ContextFPN',
        context_cfg=dict(type='mmcontext.Involution2d')))
# Linear warm-up over 2000 iterations
_base_.param_scheduler[0].end = 2000
