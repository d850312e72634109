"""What is measured, one file a metric, and the feature extractors that some of them look through.

Metrics see tensors only: they import no model, no data source and no training code.
"""
