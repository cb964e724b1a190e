_base_ = [
    '../_base_/models/cotnet50.py',
    '../_base_/datasets/imagenet_bs64_cotnet_256.py',
    '../_base_/schedules/imagenet_bs640_coslr_350e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

model = dict(
    backbone=dict(type='mmcontext.SECoTNetD', depth=152, drop_path_rate=0.15))
optim_wrapper = dict(optimizer=dict(lr=0.2))
param_scheduler = _base_.param_scheduler
param_scheduler[0].start_factor = 1e-4 / 0.2
auto_scale_lr = dict(base_batch_size=512)
