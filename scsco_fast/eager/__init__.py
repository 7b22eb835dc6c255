"""The operations in plain PyTorch with memory linear in the number of pixels: the default where no GPU is.

Each module has `forward` and `backward`; `backward` recomputes what would be large. Inputs of 16 bits are computed in
float32. On a CPU the foreground and background pixels of each image are packed to their exact number; on a GPU the
whole batch is computed at its static shape with masks, so that the host never waits for the device.
"""
