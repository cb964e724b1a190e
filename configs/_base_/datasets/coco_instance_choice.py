# The shorter side is one of six sizes, 640 to 800 pixels.
_base_ = 'mmdet::_base_/datasets/coco_instance.py'

train_pipeline = _base_.train_pipeline
train_pipeline[2] = dict(
    type='RandomChoiceResize',
    scales=[(1333, short) for short in range(640, 801, 32)],
    keep_ratio=True)
train_dataloader = dict(
    sampler=dict(type='InfiniteSampler'), dataset=dict(pipeline=train_pipeline))
