_base_ = './pyconvresnet50_augment_imagenet.py'

model = dict(backbone=dict(depth=101))
