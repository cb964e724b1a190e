# Image task of the long-range arena: CIFAR-10 in grey, as sequences of 1024 pixels.
data_preprocessor = dict(num_classes=10)

train_pipeline = test_pipeline = [
    dict(type='RandomGrayscale', prob=1.0, color_format='rgb'),
    dict(type='mmcontext.ImageToSequence', mean=122.6, std=61.),
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
