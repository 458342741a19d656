"""What became of the predictions: the join with outcomes, windows, quality, drift, reports."""
