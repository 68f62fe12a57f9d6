"""What happens around the steps of training, one concern a file; `erniekit.train.build` lists them in order."""
