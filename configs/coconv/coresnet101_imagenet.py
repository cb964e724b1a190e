_base_ = './coresnet50_imagenet.py'

model = dict(backbone=dict(depth=101))
