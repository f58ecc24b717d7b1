"""Pictures to train and to test on."""
