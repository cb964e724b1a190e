# Every image three times an epoch, in a third of the epoch's batches each.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs256_rsb_a12.py'

train_dataloader = dict(sampler=dict(type='RepeatAugSampler', shuffle=True))
