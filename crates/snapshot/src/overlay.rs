//! Layers as overlay folders.
