_base_ = '../_base_/detectors/faster_rcnn_syncbn_4conv1fc_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmcontext.CoTNet',
        depth=101,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/cotnet101.pth', prefix='backbone.')))
