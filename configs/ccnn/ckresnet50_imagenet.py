_base_ = [
    '../_base_/models/ckresnet50.py',
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    '../_base_/schedules/imagenet_bs2048_coslr_130e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

# The masks learn ten times more slowly than the rest, as in the published image networks.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(mask_width=dict(lr_mult=0.1, decay_mult=0.))))
