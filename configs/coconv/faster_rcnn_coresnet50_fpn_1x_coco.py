_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', '../_base_/runtime.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmcontext.CoResNet',
        depth=50,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/coresnet50.pth', prefix='backbone.')))
