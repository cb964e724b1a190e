_base_ = './imagenet_bs80_cotnet_224.py'

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 256
for policy in train_pipeline[3].policies:
    if policy.type == 'Translate':
        policy.magnitude_range = (0, 150 / 256)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = 288
test_pipeline[2].crop_size = 256

train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
