# MNIST as sequences of 784 pixels. Put the four idx files under data/mnist.
data_preprocessor = dict(num_classes=10)

train_pipeline = test_pipeline = [
    dict(type='mmcontext.ImageToSequence', mean=33.3285, std=78.5655),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=100,
    num_workers=2,
    drop_last=True,
    dataset=dict(
        type='MNIST',
        data_root='data/mnist',
        split='train',
        download=False,
        pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=100,
    num_workers=2,
    dataset=dict(
        type='MNIST',
        data_root='data/mnist',
        split='test',
        download=False,
        pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='Accuracy', topk=(1, ))

test_dataloader = val_dataloader
test_evaluator = val_evaluator
