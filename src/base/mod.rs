//! The base folder without tensors.
