_base_ = [
    'mmdet::_base_/models/cascade-rcnn_r50_fpn.py',
    '../datasets/coco_detection_range.py',
    '../schedules/coco_90k.py',
    '../coco_iters_runtime.py',
]

norm_cfg = dict(type='SyncBN', requires_grad=True)
l1_loss = dict(type='L1Loss', loss_weight=1.0)
box_head = dict(
    type='Shared4Conv1FCBBoxHead',
    conv_out_channels=256,
    norm_cfg=norm_cfg,
    loss_bbox=l1_loss)
model = dict(
    neck=dict(norm_cfg=norm_cfg),
    rpn_head=dict(loss_bbox=dict(_delete_=True, **l1_loss)),
    roi_head=dict(bbox_head=[dict(stage, **box_head) for stage in _base_.model.roi_head.bbox_head]))
