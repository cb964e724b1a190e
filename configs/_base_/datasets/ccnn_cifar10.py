# CIFAR-10 with the CCNN's augmentation and statistics. Put cifar-10-batches-py under
# data/cifar10.
_base_ = './ccnn.py'

data_preprocessor = dict(
    num_classes=10,
    # The images are already RGB.
    to_rgb=False,
    mean=[125.307, 122.961, 113.8575],
    std=[62.985, 61.965, 66.555])

train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4, padding_mode='symmetric'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='PackInputs'),
]

dataset = dict(type='CIFAR10', data_root='data/cifar10', download=False)
train_dataloader = dict(
    dataset=dict(dataset, split='train', indices=45000, pipeline=train_pipeline))
# The checkpoint is selected on the last 5000.
val_dataloader = dict(
    dataset=dict(dataset, split='train', indices=-5000, pipeline=test_pipeline))
test_dataloader = dict(
    dataset=dict(dataset, split='test', pipeline=test_pipeline))
