_base_ = './fpn_ckresnet50_512x1024_80k_cityscapes.py'

# Kernels may grow to 17 pixels and start as 5x5.
context_cfg = dict(
    type='mmcontext.SeparableFlexConv2d',
    kernel_size=17,
    mask_cfg=dict(init=0.15),
    kernel_cfg=dict(type='MAGNet', hidden_channels=16, omega_0=100.))
model = dict(neck=dict(type='mmcontext.ContextFPN', context_cfg=context_cfg))
