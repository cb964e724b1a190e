_base_ = './pyconvsegnet_resnet50_cityscapes.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmcontext.PyConvResNet',
        depth=50,
        out_indices=(0, 1, 2, 3),
        output_stride=8,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/pyconvresnet50.pth', prefix='backbone.')))
