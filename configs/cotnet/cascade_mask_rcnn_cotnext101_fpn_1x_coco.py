_base_ = '../_base_/detectors/cascade_mask_rcnn_syncbn_4conv1fc_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmcontext.CoTNeXt',
        depth=101,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/cotnext101.pth', prefix='backbone.')))
train_pipeline = _base_.train_pipeline
train_pipeline[2] = dict(
    type='RandomResize', scale=[(1333, 640), (1333, 800)], keep_ratio=True)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
