# The networks of the gallery: 50 layers at a quarter of the published width, on the handwritten
# digits enlarged to 64x64, so that the last feature map is more than one pixel. Other families:
#     --cfg-options model.backbone.type=mmcontext.CedNet
_base_ = [
    '../../configs/_base_/models/coresnet50.py',
    '../../configs/_base_/datasets/digits.py',
    '../../configs/_base_/schedules/digits.py',
    '../../configs/_base_/digits_runtime.py',
]

model = dict(
    backbone=dict(type='mmcontext.CoResNet', base_channels=16, zero_init_residual=True),
    head=dict(num_classes=10, in_channels=512, topk=(1, )))

resize = dict(type='Resize', scale=64, interpolation='bicubic')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    resize,
    dict(type='RandomCrop', crop_size=64, padding=8),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), resize, dict(type='PackInputs')]
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

max_epochs = 8
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=True, begin=0, end=1,
         convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=1, end=max_epochs,
         T_max=max_epochs - 1, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs)
