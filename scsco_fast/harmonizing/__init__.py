"""Harmonize pictures with a trained network: arrays and tensors (`pictures`), files (`files`), folders (`folders`)."""
