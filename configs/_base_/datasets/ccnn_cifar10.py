# CIFAR-10 with the CCNN's augmentation and statistics. Put cifar-10-batches-py under
# data/cifar10.
data_preprocessor = dict(
    num_classes=10,
    # The images are RGB already.
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

train_dataloader = dict(
    batch_size=50,
    num_workers=2,
    drop_last=True,
    dataset=dict(
        type='CIFAR10',
        data_root='data/cifar10',
        split='train',
        download=False,
        pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=50,
    num_workers=2,
    dataset=dict(
        type='CIFAR10',
        data_root='data/cifar10',
        split='test',
        download=False,
        pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='Accuracy', topk=(1, ))

test_dataloader = val_dataloader
test_evaluator = val_evaluator
