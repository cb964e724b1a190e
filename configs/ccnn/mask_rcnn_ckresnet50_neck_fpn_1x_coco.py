_base_ = './mask_rcnn_ckresnet50_fpn_1x_coco.py'

# Kernels may grow to 17 pixels and start as 5x5.
context_cfg = dict(
    type='mmcontext.SeparableFlexConv2d',
    kernel_size=17,
    mask_cfg=dict(init=0.15),
    kernel_cfg=dict(type='MAGNet', hidden_channels=16, omega_0=100.))
model = dict(neck=dict(type='mmcontext.ContextFPN', context_cfg=context_cfg))
# Linear warm-up over 2000 iterations
_base_.param_scheduler[0].end = 2000
