"""What torch's own tools need of a layer: those that copy, save, average and spread models."""
