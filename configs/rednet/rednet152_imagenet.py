_base_ = './rednet50_imagenet.py'

model = dict(backbone=dict(depth=152))
