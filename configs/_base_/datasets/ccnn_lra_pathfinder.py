# Pathfinder (32x32, hard) as sequences of 1024 pixels. Unpack lra_release under data.
_base_ = './ccnn.py'

data_preprocessor = dict(num_classes=2)

pipeline = [
    dict(type='LoadImageFromFile', color_type='grayscale'),
    dict(type='mmcontext.ImageToSequence', std=255.),
    dict(type='PackInputs'),
]

dataset = dict(
    type='mmcontext.LRAPathfinder',
    data_root='data/lra_release/pathfinder32/curv_contour_length_14')
train_dataloader = dict(batch_size=100, dataset=dict(dataset, split='train', pipeline=pipeline))
val_dataloader = dict(batch_size=100, dataset=dict(dataset, split='val', pipeline=pipeline))
test_dataloader = dict(batch_size=100, dataset=dict(dataset, split='test', pipeline=pipeline))
