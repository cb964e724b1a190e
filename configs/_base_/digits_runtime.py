_base_ = ['mmpretrain::_base_/default_runtime.py', './runtime.py']

default_hooks = dict(
    logger=dict(type='LoggerHook', interval=5),
    checkpoint=dict(
        type='CheckpointHook', interval=1, max_keep_ckpts=3, save_best='auto', rule='greater'))
randomness = dict(seed=0)
