_base_ = './faster_rcnn_pyconvresnet50_fpn_1x_coco.py'

model = dict(
    neck=dict(
        type='mmcontext.ContextFPN',
        context_cfg=dict(type='mmcontext.PyConv2d', bias=True)))
# Linear warm-up over 2000 iterations
_base_.param_scheduler[0].end = 2000
