_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '../_base_/runtime.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmcontext.RedNet',
        depth=50,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/rednet50.pth', prefix='backbone.')))
# Linear warm-up over 2000 iterations
_base_.param_scheduler[0].end = 2000
