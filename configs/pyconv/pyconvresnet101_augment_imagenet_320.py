_base_ = './pyconvresnet50_augment_imagenet_320.py'

model = dict(backbone=dict(depth=101))
