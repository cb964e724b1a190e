_base_ = ['mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py', '../_base_/runtime.py']

model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='mmcontext.CKResNet',
        depth=50,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/ckresnet50.pth', prefix='backbone.')))
# The masks learn ten times more slowly than the rest, as in the published image networks.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(mask_width=dict(lr_mult=0.1, decay_mult=0.))))
