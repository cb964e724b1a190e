_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', '../_base_/runtime.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmcontext.CedNet',
        depth=50,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/cednet50.pth', prefix='backbone.')))
