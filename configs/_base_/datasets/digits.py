# scikit-learn's handwritten digits, written by tools/dataset_converters/digits_imagenet.py:
# 1433 training and 364 validation images of 8x8 pixels, enlarged here.
dataset_type = 'CustomDataset'
data_root = 'data/digits'
image_size = 32

data_preprocessor = dict(
    num_classes=10, mean=[79.6] * 3, std=[90.8] * 3, to_rgb=False)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_size, interpolation='bicubic'),
    dict(type='Rotate', magnitude_range=(0, 12), magnitude_level=10, total_level=10,
         magnitude_std='inf', prob=0.7, pad_val=0, interpolation='bilinear'),
    dict(type='RandomCrop', crop_size=image_size, padding=4),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_size, interpolation='bicubic'),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix='train',
        pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=91,
    num_workers=1,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix='val',
        pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='Accuracy', topk=(1, ))

test_dataloader = val_dataloader
test_evaluator = val_evaluator
