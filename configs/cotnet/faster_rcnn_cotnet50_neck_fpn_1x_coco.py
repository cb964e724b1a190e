_base_ = './faster_rcnn_cotnet50_fpn_1x_coco.py'

model = dict(
    neck=dict(
        type='mmcontext.ContextFPN',
        context_cfg=dict(type='mmcontext.CoT2d', norm_cfg=dict(type='SyncBN'))))
# Linear warm-up over 2000 iterations
_base_.param_scheduler[0].end = 2000
