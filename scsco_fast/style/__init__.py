"""The style contrastive loss: VGG-16 features and where they are computed, negatives, and the loss itself."""
