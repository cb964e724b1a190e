# Trained at 160 pixels, tested at 224.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs256_rsb_a3.py'

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 160
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
