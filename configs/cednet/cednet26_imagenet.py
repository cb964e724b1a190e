_base_ = './cednet50_imagenet.py'

model = dict(backbone=dict(depth=26))
