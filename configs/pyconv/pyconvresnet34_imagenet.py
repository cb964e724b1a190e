_base_ = './pyconvresnet18_imagenet.py'

model = dict(backbone=dict(depth=34))
