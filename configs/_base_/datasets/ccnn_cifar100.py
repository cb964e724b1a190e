# CIFAR-100 without augmentation. Put cifar-100-python under data/cifar100.
data_preprocessor = dict(
    num_classes=100,
    # The images are RGB already.
    to_rgb=False,
    mean=[129.285, 124.185, 112.455],
    std=[68.085, 65.28, 70.38])

train_pipeline = test_pipeline = [dict(type='PackInputs')]

train_dataloader = dict(
    batch_size=50,
    num_workers=2,
    drop_last=True,
    dataset=dict(
        type='CIFAR100',
        data_root='data/cifar100',
        split='train',
        download=False,
        pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=50,
    num_workers=2,
    dataset=dict(
        type='CIFAR100',
        data_root='data/cifar100',
        split='test',
        download=False,
        pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='Accuracy', topk=(1, ))

test_dataloader = val_dataloader
test_evaluator = val_evaluator
