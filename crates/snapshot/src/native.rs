//! Layers as full copies, for file systems without overlay.
