_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/datasets/digits_coco.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/runtime.py',
]

# Narrow, and trained from scratch on 128x128 scenes. A C-volution is of third order in its
# input: with BN, whose statistics are those of the average image, a few images would overflow in
# inference after such short training. GN normalises each image separately.
channels = 64
strides = [4, 8, 16, 32]
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmcontext.CedNet',
        depth=26,
        base_channels=32,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='GN', num_groups=4),
        # Keeps the first gradients small enough for a schedule of minutes.
        zero_init_residual=True),
    neck=dict(
        in_channels=[128, 256, 512, 1024],
        out_channels=channels,
        num_outs=4,
        norm_cfg=dict(type='GN', num_groups=16)),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(scales=[5], strides=strides)),
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=2),
            out_channels=channels,
            featmap_strides=strides,
            finest_scale=14),
        bbox_head=dict(in_channels=channels, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=2),
            out_channels=channels,
            featmap_strides=strides,
            finest_scale=28),
        mask_head=dict(
            num_convs=2, in_channels=channels, conv_out_channels=32, num_classes=10)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100), rcnn=dict(max_per_img=20)))

max_epochs = 8
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.002, weight_decay=0.01),
    clip_grad=dict(max_norm=5, norm_type=2))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        eta_min_ratio=0.01,
        by_epoch=True,
        begin=0,
        end=max_epochs,
        convert_to_iter_based=True)
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=2))
auto_scale_lr = dict(enable=False, base_batch_size=16)
