# The shorter side is one of eleven sizes, 480 to 800 pixels.
_base_ = 'mmdet::_base_/datasets/coco_instance.py'

train_pipeline = _base_.train_pipeline
train_pipeline[2] = dict(
    type='RandomChoiceResize',
    scales=[(1333, short) for short in range(480, 801, 32)],
    keep_ratio=True)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
