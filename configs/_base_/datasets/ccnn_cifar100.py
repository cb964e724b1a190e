# CIFAR-100 without augmentation. Put cifar-100-python under data/cifar100.
_base_ = './ccnn.py'

data_preprocessor = dict(
    num_classes=100,
    # The images are already RGB.
    to_rgb=False,
    mean=[129.285, 124.185, 112.455],
    std=[68.085, 65.28, 70.38])

pipeline = [dict(type='PackInputs')]

dataset = dict(type='CIFAR100', data_root='data/cifar100', download=False)
train_dataloader = dict(dataset=dict(dataset, split='train', indices=45000, pipeline=pipeline))
# The checkpoint is selected on the last 5000.
val_dataloader = dict(
    dataset=dict(dataset, split='train', indices=-5000, pipeline=pipeline))
test_dataloader = dict(
    dataset=dict(dataset, split='test', pipeline=pipeline))
