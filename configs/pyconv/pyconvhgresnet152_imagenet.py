_base_ = './pyconvhgresnet50_imagenet.py'

model = dict(backbone=dict(depth=152))
