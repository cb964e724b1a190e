# CIFAR-10 as sequences of 1024 RGB values. Put cifar-10-batches-py under data/cifar10.
_base_ = './ccnn_cifar10.py'

data_preprocessor = dict(_delete_=True, num_classes=10)

sequence = dict(
    type='mmcontext.ImageToSequence',
    mean=[125.307, 122.961, 113.8575],
    std=[62.985, 61.965, 66.555])

train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4, padding_mode='symmetric'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    sequence,
    dict(type='PackInputs'),
]
test_pipeline = [
    sequence,
    dict(type='PackInputs'),
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
