# STL-10 at 256x256. Put the .bin files of stl10_binary under data/stl10.
_base_ = './ccnn.py'

data_preprocessor = dict(
    num_classes=10,
    # The images are already RGB.
    to_rgb=False,
    mean=[113.911, 112.152, 103.695],
    std=[66.387, 65.427, 69.204])

train_pipeline = [
    dict(type='Resize', scale=(272, 272)),
    dict(type='Rotate', magnitude_range=(0, 15), magnitude_level=10, total_level=10,
         magnitude_std='inf', prob=1.0, pad_val=0),
    dict(type='RandomCrop', crop_size=256),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='Resize', scale=(256, 256)),
    dict(type='PackInputs'),
]

dataset = dict(type='mmcontext.STL10', data_root='data/stl10')
train_dataloader = dict(
    batch_size=64, dataset=dict(dataset, split='train', indices=4500, pipeline=train_pipeline))
# The checkpoint is selected on the last 500.
val_dataloader = dict(
    batch_size=64, dataset=dict(dataset, split='train', indices=-500, pipeline=test_pipeline))
test_dataloader = dict(
    batch_size=64, dataset=dict(dataset, split='test', pipeline=test_pipeline))
