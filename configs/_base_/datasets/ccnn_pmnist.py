# Sequential MNIST with the pixels permuted, in the same way for every image.
_base_ = './ccnn_smnist.py'

pipeline = [
    dict(type='mmcontext.ImageToSequence', mean=33.3285, std=78.5655, permute_seed=0),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=pipeline))
val_dataloader = dict(dataset=dict(pipeline=pipeline))
test_dataloader = val_dataloader
