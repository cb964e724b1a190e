_base_ = './faster_rcnn_rednet50_neck_fpn_1x_coco.py'

context_cfg = dict(type='mmcontext.Involution2d')
model = dict(rpn_head=dict(type='mmcontext.ContextRPNHead', context_cfg=context_cfg))
optim_wrapper = dict(clip_grad=dict(max_norm=5, norm_type=2))
