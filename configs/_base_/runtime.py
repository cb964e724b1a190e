# What every run of this package's configs has, whichever program starts it: checkpoints that are
# whole or not there, resuming to the bit, errors in one sentence.
runner_type = 'mmcontext.ContextRunner'
