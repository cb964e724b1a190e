_base_ = './mask_rcnn_cednet50_fpn_1x_coco.py'

model = dict(
    neck=dict(
        type='mmcontext.ContextFPN',
        context_cfg=dict(type='mmcontext.CVolution2d', gate_groups=4)))
# Linear warm-up over 2000 iterations
_base_.param_scheduler[0].end = 2000
