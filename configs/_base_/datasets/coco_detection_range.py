# The shorter side is drawn uniformly from 640 to 800 pixels.
_base_ = 'mmdet::_base_/datasets/coco_detection.py'

train_pipeline = _base_.train_pipeline
train_pipeline[2] = dict(
    type='RandomResize', scale=[(1333, 640), (1333, 800)], keep_ratio=True)
train_dataloader = dict(
    sampler=dict(type='InfiniteSampler'), dataset=dict(pipeline=train_pipeline))
