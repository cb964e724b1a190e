_base_ = './cotnext50_imagenet.py'

model = dict(backbone=dict(depth=101))
optim_wrapper = dict(optimizer=dict(weight_decay=6e-5))
