_base_ = './pyconvresnet50_imagenet.py'

model = dict(backbone=dict(depth=152))
