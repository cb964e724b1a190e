# Common to all runs of this package's configs, whichever program starts them: checkpoints that are
# complete or absent, bitwise resuming, one-sentence errors.
runner_type = 'mmcontext.ContextRunner'
