# PyConvSegNet (https://arxiv.org/abs/2006.11538) on a ResNet-50 with output stride 8.
norm_cfg = dict(type='SyncBN', requires_grad=True)
loss_cfg = dict(
    type='CrossEntropyLoss',
    use_sigmoid=False,
    # The mean over the labelled pixels, as in torch's cross_entropy and the authors' code.
    avg_non_ignore=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255),
    backbone=dict(
        type='ResNet',
        depth=50,
        out_indices=(0, 1, 2, 3),
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        # The first block of a dilated stage is dilated like the others.
        contract_dilation=False,
        zero_init_residual=False,
        norm_cfg=norm_cfg,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')),
    decode_head=dict(
        type='mmcontext.PyConvHead',
        in_channels=2048,
        in_index=3,
        channels=256,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=True,
        loss_decode=dict(loss_weight=1.0, **loss_cfg)),
    auxiliary_head=dict(
        type='mmcontext.TorchInitFCNHead',
        in_channels=1024,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=True,
        loss_decode=dict(loss_weight=0.4, **loss_cfg)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
