//! What model ids mean.
