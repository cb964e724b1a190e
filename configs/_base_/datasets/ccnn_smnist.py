# MNIST as sequences of 784 pixels. Put the four idx files under data/mnist.
_base_ = './ccnn.py'

data_preprocessor = dict(num_classes=10)

pipeline = [
    dict(type='mmcontext.ImageToSequence', mean=33.3285, std=78.5655),
    dict(type='PackInputs'),
]

dataset = dict(type='MNIST', data_root='data/mnist', download=False)
train_dataloader = dict(
    batch_size=100, dataset=dict(dataset, split='train', indices=55000, pipeline=pipeline))
# The checkpoint is selected on the last 5000.
val_dataloader = dict(
    batch_size=100, dataset=dict(dataset, split='train', indices=-5000, pipeline=pipeline))
test_dataloader = dict(
    batch_size=100, dataset=dict(dataset, split='test', pipeline=pipeline))
