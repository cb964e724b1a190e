# The long-range arena's greyscale CIFAR-10, as images.
_base_ = './ccnn_lra_image.py'

data_preprocessor = dict(mean=[122.6], std=[61.])

pipeline = [
    dict(type='RandomGrayscale', prob=1.0, color_format='rgb'),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=pipeline))
val_dataloader = dict(dataset=dict(pipeline=pipeline))
test_dataloader = val_dataloader
