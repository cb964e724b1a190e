_base_ = ['mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py', '../_base_/runtime.py']

model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='mmcontext.CedNet',
        depth=50,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/cednet50.pth', prefix='backbone.')))
