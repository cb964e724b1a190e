_base_ = './cotnet50_imagenet.py'

model = dict(backbone=dict(type='mmcontext.SECoTNetD'))
