_base_ = 'mmpretrain::_base_/datasets/imagenet_bs32_pil_bicubic.py'

bgr_mean = [104, 116, 124]
# RandAugment m15-mstd0.5-n2 as in the authors' code: magnitudes are drawn around level 15 and
# clipped there, and level 10 is the full strength of the original policies, so every range below
# ends at 1.5 times that strength. Strength does not grow with the level for Posterize and
# Solarize. Shifts are fractions of the image, at most 150 pixels, and cut-outs
# have a side of at most 120 pixels.
policies = [
    dict(type='AutoContrast'),
    dict(type='Equalize'),
    dict(type='Invert'),
    dict(type='Rotate', magnitude_range=(0, 45)),
    dict(type='Posterize', magnitude_range=(0, 6)),
    dict(type='Solarize', magnitude_range=(0, 384)),
    dict(type='SolarizeAdd', magnitude_range=(0, 165)),
    dict(type='ColorTransform', magnitude_range=(-0.9, 1.8), random_negative_prob=0.),
    dict(type='Contrast', magnitude_range=(-0.9, 1.8), random_negative_prob=0.),
    dict(type='Brightness', magnitude_range=(-0.9, 1.8), random_negative_prob=0.),
    dict(type='Sharpness', magnitude_range=(-0.9, 1.8), random_negative_prob=0.),
    dict(type='Shear', magnitude_range=(0, 0.45), direction='horizontal'),
    dict(type='Shear', magnitude_range=(0, 0.45), direction='vertical'),
    dict(type='Translate', magnitude_range=(0, 150 / 224), direction='horizontal'),
    dict(type='Translate', magnitude_range=(0, 150 / 224), direction='vertical'),
    dict(type='Cutout', magnitude_range=(0, 120)),
]

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='RandAugment',
        policies=policies,
        num_policies=2,
        magnitude_level=15,
        magnitude_std=0.5,
        total_level=15,
        hparams=dict(pad_val=bgr_mean, interpolation='bicubic')),
    dict(type='PackInputs'),
]

train_dataloader = dict(batch_size=80, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=128)
test_dataloader = val_dataloader
