# An epoch is a third of the images, each of them three times with different augmentations.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs256_rsb_a12.py'

train_dataloader = dict(sampler=dict(type='RepeatAugSampler', shuffle=True))
