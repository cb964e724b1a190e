_base_ = './faster_rcnn_ckresnet50_neck_fpn_1x_coco.py'

# Kernels may grow to 9 pixels and start as 5x5.
context_cfg = dict(
    type='mmcontext.SeparableFlexConv2d',
    kernel_size=9,
    mask_cfg=dict(init=0.3),
    kernel_cfg=dict(type='MAGNet', hidden_channels=16, omega_0=100.))
model = dict(rpn_head=dict(type='mmcontext.ContextRPNHead', context_cfg=context_cfg))
optim_wrapper = dict(clip_grad=dict(max_norm=5, norm_type=2))
