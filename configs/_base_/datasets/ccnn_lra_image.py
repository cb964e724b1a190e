# Image task of the long-range arena: CIFAR-10 in greyscale, as sequences of 1024 pixels.
_base_ = './ccnn_cifar10.py'

data_preprocessor = dict(_delete_=True, num_classes=10)

pipeline = [
    dict(type='RandomGrayscale', prob=1.0, color_format='rgb'),
    dict(type='mmcontext.ImageToSequence', mean=122.6, std=61.),
    dict(type='PackInputs'),
]

train_dataloader = dict(dataset=dict(pipeline=pipeline))
val_dataloader = dict(dataset=dict(pipeline=pipeline))
test_dataloader = val_dataloader
