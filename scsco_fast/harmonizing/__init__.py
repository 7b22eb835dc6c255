"""Harmonize pictures with a trained network: arrays and tensors (`pictures`), files (`files`), folders (`folders`).

- `pictures` is `scsco_fast.harmonize`: `masks` prepares the mask, `placing` lays a cut-out on its background,
  `recolour` runs the network and applies its change, `tensors` does it for batches, `settings` are its options;
- `files` reads picture files, harmonizes them and writes the result; `image_files` reads and writes, in the `formats`;
- `folders` pairs the pictures and masks of a folder, and harmonizes all of them.
"""
