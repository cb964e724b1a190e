_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', '../_base_/runtime.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmcontext.CKResNet',
        depth=50,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/ckresnet50.pth', prefix='backbone.')))
# The masks learn ten times more slowly than the rest, as in the published image networks.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(mask_width=dict(lr_mult=0.1, decay_mult=0.))))
