_base_ = './mask_rcnn_coresnet50_neck_fpn_1x_coco.py'

context_cfg = dict(type='mmcontext.CoConv2d', bias=True)
model = dict(
    rpn_head=dict(type='mmcontext.ContextRPNHead', context_cfg=context_cfg),
    roi_head=dict(mask_head=dict(type='mmcontext.ContextFCNMaskHead', context_cfg=context_cfg)))
optim_wrapper = dict(clip_grad=dict(max_norm=5, norm_type=2))
