_base_ = './faster_rcnn_cotnet50_neck_fpn_1x_coco.py'

context_cfg = dict(type='mmcontext.CoT2d', norm_cfg=dict(type='SyncBN'))
model = dict(
    rpn_head=dict(type='mmcontext.ContextRPNHead', context_cfg=context_cfg),
    roi_head=dict(
        bbox_head=dict(type='mmcontext.ContextConvFCBBoxHead', context_cfg=context_cfg)))
optim_wrapper = dict(clip_grad=dict(max_norm=5, norm_type=2))
