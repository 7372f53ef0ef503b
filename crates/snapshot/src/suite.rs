//! What every snapshot driver must do.
