_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    '../datasets/coco_detection_range.py',
    '../schedules/coco_90k.py',
    '../coco_iters_runtime.py',
]

norm_cfg = dict(type='SyncBN', requires_grad=True)
box_head = dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg)
model = dict(
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(bbox_head=box_head))
